"""The backend's functions but training, on the host: what every GPU backend is asked, and more."""

import pytest

from tests.backends.triton.test_dense import (  # noqa: F401
    check,
    make_backward,
    make_forward,
    test_activations_let_nan_through,
    test_backward_runs_as_often_as_asked,
    test_backward_with_a_rule_updates_where_d_logits_is_finite,
    test_norms_over_chunks,
    test_one_row_has_no_batch_statistics,
    test_operands_are_rounded_as_the_reference_rounds,
    test_plans,
    test_precisions,
    test_rows_do_not_know_each_other,
    test_sizes,
)
from tests.backends.triton.test_head import (  # noqa: F401
    test_head,
    test_logits_of_any_size,
    test_logits_that_are_not_finite_show_in_their_row_alone,
    test_outputs_are_optional,
)
from tests.backends.triton.test_noise import (  # noqa: F401
    test_a_label_out_of_range_changes_nothing,
    test_add_noise,
    test_normals_to_a_millionth_of_four_deviations,
    test_rows_keep_their_noise_wherever_they_are_drawn,
)
from tests.backends.triton.test_update import (  # noqa: F401
    test_early_bias_corrections_keep_their_digits,
    test_update,
)

pytestmark = pytest.mark.cuda_host
