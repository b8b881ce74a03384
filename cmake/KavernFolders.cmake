# Include paths that follow the link arrows.
#
# Every top-level folder F is reached through its own include root, build/<preset>/include/F, that
# holds nothing but a link to F. A target sees the headers of exactly the folders whose targets it
# links, so an include against the arrows of docs/ARCHITECTURE.md does not compile.

function(kavern_folder folder)
  set(root "${CMAKE_BINARY_DIR}/include/${folder}")
  file(MAKE_DIRECTORY "${root}")
  file(CREATE_LINK "${CMAKE_SOURCE_DIR}/${folder}" "${root}/${folder}" SYMBOLIC)
endfunction()

# kavern_library(NAME FOLDER folder SOURCES ... LINKS ... [PRIVATE_LINKS ...])
function(kavern_library name)
  cmake_parse_arguments(ARG "" "FOLDER" "SOURCES;LINKS;PRIVATE_LINKS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC
    $<BUILD_INTERFACE:${CMAKE_BINARY_DIR}/include/${ARG_FOLDER}>)
  target_link_libraries(${name} PUBLIC ${ARG_LINKS}
    PRIVATE $<BUILD_INTERFACE:kavern_options> ${ARG_PRIVATE_LINKS})
endfunction()
