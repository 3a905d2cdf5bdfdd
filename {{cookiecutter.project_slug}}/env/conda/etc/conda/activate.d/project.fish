# As project.sh, for fish, where LD_LIBRARY_PATH is a list and "$LD_LIBRARY_PATH" is joined by colons.
if not set -q ISOLATE_OLD_USERSITE
    set -gx ISOLATE_OLD_USERSITE ""
    set -gx ISOLATE_OLD_LIBRARIES ""
    set -q PYTHONNOUSERSITE; and set -gx ISOLATE_OLD_USERSITE "x$PYTHONNOUSERSITE"
    set -q LD_LIBRARY_PATH; and set -gx ISOLATE_OLD_LIBRARIES "x$LD_LIBRARY_PATH"
    set -gx PYTHONNOUSERSITE 1
    if test -n "$LD_LIBRARY_PATH"
        set -l kept (string match -rv '^(?!.*/compat).*/(?i:cuda|cudnn)' -- $LD_LIBRARY_PATH)
        if set -q kept[1]
            set -gx LD_LIBRARY_PATH $kept
        else
            set -eg LD_LIBRARY_PATH
        end
    end
end
