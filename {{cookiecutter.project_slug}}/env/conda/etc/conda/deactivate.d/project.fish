# As project.sh, for fish.
if set -q ISOLATE_OLD_USERSITE
    if string match -q 'x*' -- "$ISOLATE_OLD_USERSITE"
        set -gx PYTHONNOUSERSITE (string sub -s 2 -- "$ISOLATE_OLD_USERSITE")
    else
        set -eg PYTHONNOUSERSITE
    end
    if string match -q 'x*' -- "$ISOLATE_OLD_LIBRARIES"
        set -gx LD_LIBRARY_PATH (string sub -s 2 -- "$ISOLATE_OLD_LIBRARIES")
    else
        set -eg LD_LIBRARY_PATH
    end
    set -eg ISOLATE_OLD_USERSITE ISOLATE_OLD_LIBRARIES
end
