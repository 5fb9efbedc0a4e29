# relay.py dial PORT | listen PORT HOST TO: a TCP port of the loopback on standard input and output, or led to another host.
import os, select, socket, sys, threading

def put(fd, data):
    while data:
        data = data[os.write(fd, data):]

# What comes from `source` goes to the socket, what comes from there goes to `sink`; over when the socket ends, or a minute after `source` did.
def join_up(source, sink, peer):
    open_ = True
    while True:
        ready, _, _ = select.select(([source] if open_ else []) + [peer.fileno()], [], [], None if open_ else 60)
        if not ready:
            return
        if source in ready:
            data = os.read(source, 65536)
            if data:
                peer.sendall(data)
            else:
                open_ = False
                peer.shutdown(socket.SHUT_WR)
        if peer.fileno() in ready:
            data = os.read(peer.fileno(), 65536)
            if not data:
                return
            put(sink, data)

def lead(client, host, port):
    try:
        with client, socket.create_connection((host, port)) as peer:
            join_up(client.fileno(), client.fileno(), peer)
    except OSError:
        pass

if sys.argv[1] == "dial":
    try:
        peer = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    except OSError:
        put(1, b"refused\n")
        sys.exit(0)
    put(1, b"open\n")
    try:
        join_up(0, 1, peer)
    except OSError:
        pass
    sys.exit(0)
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[2])))
server.listen(128)
while True:
    client, _ = server.accept()
    threading.Thread(target=lead, args=(client, sys.argv[3], int(sys.argv[4])), daemon=True).start()
