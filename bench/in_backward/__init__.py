"""The optimizer inside backward: three models beside the usual ways to train them."""
