#!/bin/bash
# Asks the server whether it is ready, with nothing but the shell: the image has no other client of HTTP.
set -euo pipefail
port="${READY_PORT:-32101}"
exec 3<> "/dev/tcp/127.0.0.1/$port"
printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
read -r -t 4 _ status _ <&3
[ "$status" = 200 ]
