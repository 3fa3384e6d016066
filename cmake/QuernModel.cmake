# quern_add_model(<target> <model> [PREFIX <name>] [OPTIONS <option>...]): a static library of a model, compiled when it is
# built, with its header on the path of whoever links it. PREFIX is that of the C names and of the header, <name>.h; the
# target's name where it isn't given. Options are those of `quern compile`.
function(quern_add_model target model)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "PREFIX" "OPTIONS")
  if(arg_UNPARSED_ARGUMENTS OR arg_KEYWORDS_MISSING_VALUES)
    message(FATAL_ERROR "quern_add_model(${target}): what is '${arg_UNPARSED_ARGUMENTS}${arg_KEYWORDS_MISSING_VALUES}'? "
      "It takes a target, a model, PREFIX and OPTIONS")
  endif()
  cmake_path(ABSOLUTE_PATH model NORMALIZE)
  if(NOT arg_PREFIX)
    string(MAKE_C_IDENTIFIER ${target} arg_PREFIX)
  endif()
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/${target}.model)
  set(archive ${folder}/${arg_PREFIX}.a)
  set(header ${folder}/${arg_PREFIX}.h)
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(OUTPUT ${archive} ${header}
    COMMAND Quern::compiler compile ${model} -o ${archive} --header ${header} --prefix ${arg_PREFIX} ${arg_OPTIONS}
    DEPENDS ${model} COMMENT "Compiling ${model}" VERBATIM)
  add_custom_target(${target}_model DEPENDS ${archive} ${header})
  add_library(${target} STATIC IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION ${archive} INTERFACE_INCLUDE_DIRECTORIES ${folder})
  add_dependencies(${target} ${target}_model)
endfunction()
