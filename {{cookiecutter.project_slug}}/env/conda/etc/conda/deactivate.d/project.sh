# `conda deactivate` reads this in bash and zsh: puts back what activate.d/project.sh changed.
if [ -n "${ISOLATE_OLD_USERSITE+known}" ]; then
    case $ISOLATE_OLD_USERSITE in
        x*) export PYTHONNOUSERSITE="${ISOLATE_OLD_USERSITE#x}" ;;
        *) unset PYTHONNOUSERSITE ;;
    esac
    case $ISOLATE_OLD_LIBRARIES in
        x*) export LD_LIBRARY_PATH="${ISOLATE_OLD_LIBRARIES#x}" ;;
        *) unset LD_LIBRARY_PATH ;;
    esac
    unset ISOLATE_OLD_USERSITE ISOLATE_OLD_LIBRARIES
fi
