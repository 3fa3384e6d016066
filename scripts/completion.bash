# Completion of the quern command for bash. What there is to complete is asked of quern itself.
_quern()
{
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} quern=${COMP_WORDS[0]} command=${COMP_WORDS[1]} words
    if [ "$COMP_CWORD" -eq 1 ] || { [ "$COMP_CWORD" -eq 2 ] && [ "$command" = help ]; }; then
        words=$("$quern" --help 2>/dev/null | sed -n 's/^quern \([a-z]*\) .*/\1/p')
    elif [[ $word == -* ]]; then
        words=$("$quern" "$command" --help 2>/dev/null | sed -nE 's|^  (-., )?(--[a-z-]+).*|\2|p')
    else
        case $before in
        --target) words="cpu interp nvptx64 cuda" ;;
        --cpu) words="native x86-64-v3 x86-64-v4 icelake-server znver4 sapphirerapids" ;;
        --math) words="strict default fast" ;;
        --precision) words="f32 bf16 int8 int4" ;;
        --emit) words="so a o llvm asm ptx qn" ;;
        --format) words="text json dot graph program kernels" ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o default -F _quern quern
