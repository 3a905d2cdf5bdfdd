# `conda activate` reads this in bash and zsh: no packages of ~/.local, no system CUDA before the environment's own.
# The old values are kept for deactivation behind an x: no x was unset, nothing behind it was empty.
if [ -z "${ISOLATE_OLD_USERSITE+known}" ]; then
    export ISOLATE_OLD_USERSITE="${PYTHONNOUSERSITE+x$PYTHONNOUSERSITE}"
    export ISOLATE_OLD_LIBRARIES="${LD_LIBRARY_PATH+x$LD_LIBRARY_PATH}"
    export PYTHONNOUSERSITE=1
    if [ -n "${LD_LIBRARY_PATH-}" ]; then
        _isolate_kept=
        _isolate_rest=$LD_LIBRARY_PATH:
        while [ -n "$_isolate_rest" ]; do
            _isolate_entry=${_isolate_rest%%:*}
            _isolate_rest=${_isolate_rest#*:}
            case $_isolate_entry in
                */compat*) _isolate_kept=$_isolate_kept:$_isolate_entry ;; # a newer driver's libraries: wanted
                */[Cc][Uu][Dd][Aa]* | */[Cc][Uu][Dd][Nn][Nn]*) ;;
                *) _isolate_kept=$_isolate_kept:$_isolate_entry ;;
            esac
        done
        if [ -n "$_isolate_kept" ]; then
            export LD_LIBRARY_PATH="${_isolate_kept#:}"
        else
            unset LD_LIBRARY_PATH
        fi
        unset _isolate_kept _isolate_rest _isolate_entry
    fi
fi
