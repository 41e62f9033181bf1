#!/usr/bin/env bash
# The first five minutes: installs what a build needs, builds `sagitta`, loads 10,000 package descriptions with their
# embeddings into the local folder ./sagitta-data, and runs the searches of quickstart.sql, SQL and answers.
# Needs Rust (https://rustup.rs) on a Debian-like system. Can be run again: the tables are replaced.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if ! command -v cargo > /dev/null && [ -f "$HOME/.cargo/env" ]; then
  . "$HOME/.cargo/env"
fi
if ! command -v cargo > /dev/null; then
  echo "cargo is missing: install Rust from https://rustup.rs, then run this again" >&2
  exit 1
fi

# Lance's build wants protoc, and any build wants a linker.
missing=()
command -v protoc > /dev/null || missing+=(protobuf-compiler)
command -v cc > /dev/null || missing+=(build-essential)
if [ "${#missing[@]}" -gt 0 ]; then
  echo "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
fi

cargo build --release --bin sagitta
target="${CARGO_TARGET_DIR:-target}"
sagitta="$target/release/sagitta"

data="${SAGITTA_DATA:-./sagitta-data}"
began=$(date +%s)
"$sagitta" import examples/packages.parquet --table packages --replace --data "$data"
"$sagitta" import examples/wishes.parquet --table wishes --replace --data "$data"
"$sagitta" --data "$data" --echo -f examples/quickstart.sql
echo
echo "Loaded and searched in $(($(date +%s) - began)) s. Go on by hand with: $sagitta --data $data"
