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
cruft update --skip-apply-ask --checkout "$commit" --variables-to-update "{$answers}"
rm -rf .venv .conda poetry.lock uv.lock conda-lock.txt pylock.toml
