# Another build of PyTorch or another environment: make switch CUDA=cu130 ENV=conda
# The version of the template stays: only what depends on these two answers changes.
set -eu
CUDA=$1 MANAGER=$2

fail() {
    echo "error: $1" >&2
    exit 1
}

answers=
[ -z "$CUDA" ] || answers="\"cuda\": \"$CUDA\""
[ -z "$MANAGER" ] || answers="${answers:+$answers, }\"env_manager\": \"$MANAGER\""
[ -n "$answers" ] || fail "switch to what? For example: make switch CUDA=cu130, or ENV=conda"
command -v cruft >/dev/null || fail "cruft is not here. Run: pipx install cruft"
[ -f .cruft.json ] || fail "this project does not know its template. Run: cruft link, with the address of the template"
commit=$(sed -n 's/^ *"commit": "\(.*\)",*$/\1/p' .cruft.json)
export TYPER_STANDARD_TRACEBACK=1 _TYPER_STANDARD_TRACEBACK=1 # cruft prints answers that the template refuses as one
exec 3>&1
if ! said=$(cruft update --skip-apply-ask --checkout "$commit" --variables-to-update "{$answers}" 2>&1 >&3); then
    refused=$(printf '%s\n' "$said" | sed -n 's/^.*FailedHookException: //p')
    [ -z "$refused" ] || fail "$refused"
    printf '%s\n' "$said" >&2
    exit 1
fi
printf '%s\n' "$said" >&2
rm -rf .venv .conda poetry.lock uv.lock conda-lock.txt pylock.toml
