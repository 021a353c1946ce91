# Flags from outside (CXXFLAGS, LDFLAGS, CMAKE_CXX_FLAGS, words after a compiler's name) may say neither what floating
# point means nor which processor is needed: such words are left out, and told. Ours follow what remains.
set(NOPROP_FLAGS_LEFT_OUT "")

macro(noprop_leave_out variable pattern)
  string(REGEX MATCHALL "(^|[ \t])(${pattern})" words "${${variable}}")
  if(words)
    list(APPEND NOPROP_FLAGS_LEFT_OUT ${words})
    string(REGEX REPLACE "(^|[ \t])(${pattern})" "" ${variable} "${${variable}}")
  endif()
endmacro()

# -Ofast and -ffast-math also set the whole process's rounding of subnormals, at the link; code that is made at the link
# is made from flags that were meant for another file
set(pattern "-Ofast|-f[^ \t=]*(math|nans|infinities|zeros|float|precision|approx|cx-|fp-|contract|lto)[^ \t]*")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64|aarch64|arm64")
  string(APPEND pattern "|-m[^ \t]*")  # elsewhere an ABI may depend on them
endif()
foreach(variable CMAKE_CXX_COMPILER_ARG1 CMAKE_CXX_FLAGS CMAKE_EXE_LINKER_FLAGS
        CMAKE_MODULE_LINKER_FLAGS CMAKE_SHARED_LINKER_FLAGS)
  noprop_leave_out(${variable} "${pattern}")
endforeach()
string(TOUPPER "${CMAKE_BUILD_TYPE}" type)
noprop_leave_out(CMAKE_CXX_FLAGS_${type} "${pattern}")
set(CMAKE_INTERPROCEDURAL_OPTIMIZATION OFF)

# a host compiler's word follows -Xcompiler, alone or in a list
set(pattern "--?use_fast_math|--?(ftz|prec-div|prec-sqrt|fmad)(=|[ \t]+)[^ \t]*|(-Xcompiler|--compiler-options)(=|[ \t]+)[^ \t]*(-Ofast|math|-m)[^ \t]*")
set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} $ENV{CUDAFLAGS}")
noprop_leave_out(CMAKE_CUDA_FLAGS "${pattern}")

list(REMOVE_DUPLICATES NOPROP_FLAGS_LEFT_OUT)
string(REPLACE ";" " " NOPROP_FLAGS_LEFT_OUT "${NOPROP_FLAGS_LEFT_OUT}")
string(REGEX REPLACE "[ \t]+" " " NOPROP_FLAGS_LEFT_OUT " ${NOPROP_FLAGS_LEFT_OUT}")
string(STRIP "${NOPROP_FLAGS_LEFT_OUT}" NOPROP_FLAGS_LEFT_OUT)
if(NOPROP_FLAGS_LEFT_OUT)
  message(STATUS "Flags from outside that are left out: ${NOPROP_FLAGS_LEFT_OUT}")
endif()
