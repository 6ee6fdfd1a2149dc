# Read in by ./run and ./test.
#
# need PROGRAM:PACKAGE…  sees to it that these programs (or files) are there: installs Debian's packages where it may, else says what to do.
need() {
    local pair missing="" as_root=""
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || [ -e "${pair%%:*}" ] || missing+="${pair#*:} "
    done
    [ -n "$missing" ] || return 0
    missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
    missing=${missing% }
    if ! command -v apt-get >/dev/null; then
        echo "$0: programs are missing; install what Debian has in: $missing" >&2
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        as_root="sudo -n"
        if ! $as_root true 2>/dev/null; then
            echo "$0: programs are missing; as root, run: apt-get update && apt-get install -y $missing" >&2
            return 1
        fi
    fi
    echo "$0: installing $missing" >&2
    # The lists may be there already, and there may be no network for new ones.
    $as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        get() { apt-get install -qqy --no-install-recommends "$@" >/dev/null 2>&1; }
        get "$@" || { apt-get update -qq && apt-get install -qqy --no-install-recommends "$@" >/dev/null; }' - $missing && return
    echo "$0: that failed; to try again by hand, as root: apt-get update && apt-get install -y $missing" >&2
    return 1
}

if ! command -v cargo >/dev/null; then
    echo "$0: there is no cargo in \$PATH; install Rust as https://rustup.rs says" >&2
    exit 1
fi
