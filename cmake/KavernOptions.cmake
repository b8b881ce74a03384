# Compiler settings shared by every target, as one interface target: kavern_options.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

# Dev: fast enough to measure with, assertions on, stack traces that name lines.
set(CMAKE_C_FLAGS_DEV "-O2 -g1")
set(CMAKE_CXX_FLAGS_DEV "-O2 -g1")
# Sanitize: the compiler's time is the cost here.
set(CMAKE_C_FLAGS_SANITIZE "-O1 -g1")
set(CMAKE_CXX_FLAGS_SANITIZE "-O1 -g1")
set(CMAKE_C_FLAGS_RELEASE "-O3 -g1 -DNDEBUG")
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -g1 -DNDEBUG")
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Dev, Debug, Sanitize or Release" FORCE)
endif()

option(KAVERN_WERROR "Warnings are errors" OFF)
option(KAVERN_FUZZ "Build the libFuzzer programs (clang)" OFF)
option(KAVERN_COVERAGE "Count executed lines with gcov" OFF)
set(KAVERN_SANITIZE "" CACHE STRING "Value for -fsanitize=: address,undefined or thread")

find_program(KAVERN_CCACHE ccache)
if(KAVERN_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER "${KAVERN_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER "${KAVERN_CCACHE}")
endif()

add_library(kavern_options INTERFACE)
target_compile_options(kavern_options INTERFACE
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>
  $<$<BOOL:${KAVERN_WERROR}>:-Werror>)
# Not vptr: that check asks the kernel through a pipe whether memory is readable, and takes every object for a wrong
# one in a test that has used up its descriptors.
if(KAVERN_SANITIZE)
  target_compile_options(kavern_options INTERFACE
    -fsanitize=${KAVERN_SANITIZE} -fno-sanitize=vptr -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(kavern_options INTERFACE -fsanitize=${KAVERN_SANITIZE})
endif()
# Everywhere, not in the targets alone: the fuzzer is to see the branches of what they call.
if(KAVERN_FUZZ)
  target_compile_options(kavern_options INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(KAVERN_COVERAGE)
  target_compile_options(kavern_options INTERFACE --coverage)
  target_link_options(kavern_options INTERFACE --coverage)
endif()
