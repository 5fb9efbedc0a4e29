# dial.sh PORT PERL PYTHON: joins standard input and output to TCP port PORT of the loopback, after a line that tells whether it could.
if ! pe_listens "$1"; then echo refused; exit 0; fi
if command -v perl >/dev/null; then exec perl -e "$2" dial "$1"; fi
if command -v python3 >/dev/null; then exec python3 -c "$3" dial "$1"; fi
if command -v nc >/dev/null; then echo open; exec nc 127.0.0.1 "$1"; fi
if command -v bash >/dev/null; then
  exec bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1" || { echo refused; exit 0; }; echo open; cat <&3 & cat >&3; wait' dial "$1"
fi
echo none
