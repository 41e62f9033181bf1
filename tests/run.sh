#!/usr/bin/env bash
# Sets up and runs every test: format, lints, Rust tests, SQL logic tests, the embedded example, end-to-end tests.
# Anything that fails fails the run; the runners' own summaries stay on screen.
#
# Everything is built once, in the release profile: the tests drive the binary that people run. No `--package`
# after the lints: the features of a part differ from those of the whole, and the dependency tree would be built again.
# Clippy cannot use that build and checks the whole dependency tree once more (some 10 minutes on 2 cores), so it covers
# `kernels` always and the whole workspace with SAGITTA_CLIPPY=all.
set -euo pipefail
cd "$(dirname "$0")/.."
began=$(date +%s)
minutes() { echo $((($(date +%s) - began) / 60)); }
step() { printf '\n=== %s (minute %s)\n' "$1" "$(minutes)"; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

step "set-up"
if ! command -v cargo > /dev/null && [ -f "$HOME/.cargo/env" ]; then
  . "$HOME/.cargo/env"
fi
if ! command -v cargo > /dev/null; then
  echo "cargo is missing: install Rust from https://rustup.rs, then run this again" >&2
  exit 1
fi
missing=()
command -v protoc > /dev/null || missing+=(protobuf-compiler)
command -v cc > /dev/null || missing+=(build-essential)
command -v git > /dev/null || missing+=(git)
command -v openssl > /dev/null || missing+=(openssl)
command -v java > /dev/null || missing+=(default-jre-headless)
python3 -c 'import venv, ensurepip' 2> /dev/null || missing+=(python3 python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then
  echo "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
fi
for component in rustfmt clippy; do
  cargo "${component/rustfmt/fmt}" --version > /dev/null 2>&1 || rustup component add "$component"
done

target="${CARGO_TARGET_DIR:-target}"
mkdir -p "$target"
target="$(cd "$target" && pwd)"
export CARGO_TARGET_DIR="$target"
# The virtual environment is made anew when the requirements change.
wanted="$(sha256sum tests/requirements.txt | cut -c1-12)-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
venv="$target/e2e-venv-$wanted"
if [ ! -f "$venv/ready" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --requirement tests/requirements.txt
  touch "$venv/ready"
fi
echo "rust $(rustc --version), $("$venv/bin/python" --version), target $target"

step "format"
cargo fmt --all --check
echo "formatted"

step "lints of kernels"
cargo clippy --release --package kernels --all-targets -- -D warnings

step "build"
cargo build --release --workspace --bins

step "Rust tests, SQL logic tests"
cargo test --release --workspace --no-fail-fast

step "embedded example"
cargo run --release --quiet --bin embedded

step "end-to-end tests"
SAGITTA_BIN="$target/release/sagitta" "$venv/bin/python" -m pytest -q -ra -p no:cacheprovider --durations=5 tests/e2e

if [ "${SAGITTA_CLIPPY:-kernels}" = all ]; then
  step "lints of the whole workspace"
  cargo clippy --release --workspace --all-targets -- -D warnings
else
  step "lints of the whole workspace: not run; SAGITTA_CLIPPY=all runs them"
fi

step "all tests passed"
