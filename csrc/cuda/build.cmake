# The CUDA kernels' extension `_cuda`, where NOPROP_CUDA wants it: AUTO wants it where an NVIDIA driver is. It is built
# by a CMake of its own (CMakeLists.txt beside this file, attempt.cmake), so that nothing of it can end an AUTO build:
# what was said goes into `_C` as its attribute cuda_left_out. With ON it ends the build.
set(oldest_nvcc 12.1)  # more than 4 KiB of parameters
set(NOPROP_CUDA_PATIENCE 300 CACHE STRING "Seconds that each trial of nvcc may take")
set(attempt ${CMAKE_CURRENT_LIST_DIR}/attempt.cmake)
set(left_out ${CMAKE_CURRENT_BINARY_DIR}/cuda_left_out.cpp)
set(cuda_build ${CMAKE_CURRENT_BINARY_DIR}/cuda)
set(cuda_module ${CMAKE_CURRENT_BINARY_DIR}/_cuda${PYTHON_MODULE_EXTENSION})
include(${attempt})

if(NOT NOPROP_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "NOPROP_CUDA must be AUTO, ON or OFF, got ${NOPROP_CUDA}")
endif()

# what the loader finds, which is no stub of a toolkit's: a stub's cuInit returns 34
function(find_driver found)
  set(${found} OFF PARENT_SCOPE)
  if(EXISTS /proc/driver/nvidia/version)
    set(${found} ON PARENT_SCOPE)
    return()
  endif()
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import ctypes
driver = ctypes.CDLL('libcuda.so.1')
assert '/stubs/' not in open('/proc/self/maps').read()
assert not hasattr(driver, 'cuInit') or driver.cuInit(0) != 34"
    RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET TIMEOUT 30)
  if(status STREQUAL "0")
    set(${found} ON PARENT_SCOPE)
  endif()
endfunction()

# the path of nvcc and its version, or a reason
function(find_nvcc nvcc version reason)
  set(asked "${CMAKE_CUDA_COMPILER}")
  if(NOT asked)
    set(asked "$ENV{CUDACXX}")
  endif()
  if(asked)
    set(found_nvcc "${asked}")
  else()
    find_program(found_nvcc nvcc NO_CACHE
                 HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
  endif()
  if(NOT found_nvcc)
    set(${reason} "no nvcc was found" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${found_nvcc} --version RESULT_VARIABLE status
                  OUTPUT_VARIABLE text ERROR_VARIABLE text TIMEOUT ${NOPROP_CUDA_PATIENCE})
  if(NOT text MATCHES "release ([0-9]+\\.[0-9]+)")
    noprop_words(words "${text}")
    set(${reason} "${found_nvcc} --version ended with ${status} and named no release: ${words}" PARENT_SCOPE)
    return()
  endif()
  if(CMAKE_MATCH_1 VERSION_LESS oldest_nvcc)
    set(${reason} "nvcc must be ${oldest_nvcc} or later, got ${CMAKE_MATCH_1} (${found_nvcc})" PARENT_SCOPE)
    return()
  endif()
  set(${nvcc} "${found_nvcc}" PARENT_SCOPE)
  set(${version} ${CMAKE_MATCH_1} PARENT_SCOPE)
endfunction()

set(reason "")
if(NOPROP_CUDA STREQUAL "OFF")
  set(reason "the build was told NOPROP_CUDA=OFF")
elseif(NOPROP_CUDA STREQUAL "AUTO")
  find_driver(has_driver)
  if(NOT has_driver)
    set(reason "no NVIDIA driver was found where it was built; NOPROP_CUDA=ON builds it all the same")
  endif()
endif()

if(NOT reason)
  find_nvcc(nvcc nvcc_version reason)
endif()

if(NOT reason)
  # machine code for each, and PTX of the last one for what comes later; none needs an "a" target
  if(NOT NOPROP_CUDA_ARCHITECTURES)
    if(nvcc_version VERSION_LESS 12.8)
      set(NOPROP_CUDA_ARCHITECTURES "80-real;90-real;90-virtual")
    else()
      set(NOPROP_CUDA_ARCHITECTURES "80-real;90-real;100-real;100-virtual")
    endif()
  endif()
  message(STATUS "CUDA kernels: nvcc ${nvcc_version}, ${NOPROP_CUDA_ARCHITECTURES}")
  # as a file, for words with spaces and lists
  set(settings "")
  set(CMAKE_CUDA_COMPILER "${nvcc}")
  set(CMAKE_CUDA_ARCHITECTURES "${NOPROP_CUDA_ARCHITECTURES}")
  set(NOPROP_CUDA_OUTPUT "${CMAKE_CURRENT_BINARY_DIR}")
  foreach(name CMAKE_BUILD_TYPE CMAKE_MAKE_PROGRAM CMAKE_CXX_COMPILER CMAKE_CXX_FLAGS
          CMAKE_CUDA_COMPILER CMAKE_CUDA_FLAGS CMAKE_CUDA_HOST_COMPILER CMAKE_CUDA_ARCHITECTURES
          CMAKE_MODULE_LINKER_FLAGS Python_EXECUTABLE pybind11_DIR NOPROP_WARNINGS
          NOPROP_CUDA_CLOCKS NOPROP_CUDA_OUTPUT)
    if(DEFINED ${name} AND NOT "${${name}}" STREQUAL "")
      string(APPEND settings "set(${name} [==[${${name}}]==] CACHE STRING \"\" FORCE)\n")
    endif()
  endforeach()
  file(REMOVE ${cuda_build}/trial.o)
  file(WRITE ${cuda_build}/settings.cmake "${settings}")
  # by nvcc itself, since CMake keeps what it says to itself
  separate_arguments(options UNIX_COMMAND "${CMAKE_CUDA_FLAGS}")
  if(NOPROP_CUDA_ARCHITECTURES MATCHES "^[0-9]+")
    list(APPEND options -arch=sm_${CMAKE_MATCH_0})
  endif()
  if(CMAKE_CUDA_HOST_COMPILER)
    list(APPEND options -ccbin ${CMAKE_CUDA_HOST_COMPILER})
  elseif(DEFINED ENV{CUDAHOSTCXX})
    list(APPEND options -ccbin $ENV{CUDAHOSTCXX})
  endif()
  noprop_run(reason "the trial compilation of csrc/cuda/runtime.cu" ${NOPROP_CUDA_PATIENCE}
             ${nvcc} -std=c++20 ${options} -I${CMAKE_CURRENT_LIST_DIR}/..
             -c ${CMAKE_CURRENT_LIST_DIR}/runtime.cu -o ${cuda_build}/trial.o)
  if(NOT reason AND NOT EXISTS ${cuda_build}/trial.o)
    set(reason "the trial compilation of csrc/cuda/runtime.cu made nothing, with ${nvcc}")
  endif()
  if(NOT reason)
    noprop_run(reason "CMake's look at nvcc" ${NOPROP_CUDA_PATIENCE} ${CMAKE_COMMAND}
               -S ${CMAKE_CURRENT_LIST_DIR} -B ${cuda_build}/build -G ${CMAKE_GENERATOR}
               -C ${cuda_build}/settings.cmake)
  endif()
endif()

if(reason AND NOPROP_CUDA STREQUAL "ON")
  message(FATAL_ERROR "NOPROP_CUDA=ON: ${reason}")
endif()
if(reason)
  message(STATUS "CUDA kernels are left out: ${reason}")
  file(REMOVE ${cuda_module})
  noprop_write_left_out(${left_out} "${reason}")
else()
  add_custom_target(_cuda
    COMMAND ${CMAKE_COMMAND} -D build=${cuda_build}/build -D module=${cuda_module}
            -D left_out=${left_out} -D wanted=${NOPROP_CUDA} -P ${attempt}
    BYPRODUCTS ${left_out} VERBATIM)
endif()

add_library(noprop_cuda_left_out STATIC ${left_out})
if(TARGET _cuda)
  add_dependencies(noprop_cuda_left_out _cuda)
endif()
target_link_libraries(_C PRIVATE noprop_cuda_left_out)

# an older one must not stay where this build has none
install(CODE "
set(module \"${cuda_module}\")
set(folder \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/noprop_kernels\")
if(EXISTS \"\${module}\")
  file(INSTALL \"\${module}\" DESTINATION \"\${folder}\")
else()
  file(REMOVE \"\${folder}/_cuda${PYTHON_MODULE_EXTENSION}\")
endif()")
