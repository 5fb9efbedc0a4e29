# relay.pl dial PORT | listen PORT HOST TO: a TCP port of the loopback on standard input and output, or led to another host.
use strict;
use Socket;

sub reach {
    my ($host, $port) = @_;
    my $address = inet_aton($host) or return;
    socket(my $socket, PF_INET, SOCK_STREAM, 0) or return;
    connect($socket, sockaddr_in($port, $address)) or return;
    return $socket;
}

sub put {
    my ($to, $data) = @_;
    while (length $data) {
        my $n = syswrite($to, $data);
        next if !defined $n && $!{EINTR};
        return 0 if !defined $n;
        substr($data, 0, $n, '');
    }
    return 1;
}

# What comes from $in goes to the socket, what comes from there goes to $out; over when the socket ends, or a minute after $in did.
sub join_up {
    my ($in, $out, $socket) = @_;
    my ($open, $data) = (1);
    while (1) {
        my $ready = '';
        vec($ready, fileno($in), 1) = 1 if $open;
        vec($ready, fileno($socket), 1) = 1;
        my $n = select($ready, undef, undef, $open ? undef : 60);
        next if $n < 0 && $!{EINTR};
        return if $n <= 0;
        if ($open && vec($ready, fileno($in), 1)) {
            if (sysread($in, $data, 65536)) { put($socket, $data) or return }
            else { $open = 0; shutdown($socket, 1) }
        }
        if (vec($ready, fileno($socket), 1)) {
            sysread($socket, $data, 65536) or return;
            put($out, $data) or return;
        }
    }
}

$SIG{PIPE} = 'IGNORE';
my ($mode, $port, $host, $to) = @ARGV;
if ($mode eq 'dial') {
    my $socket = reach('127.0.0.1', $port);
    if (!$socket) { put(\*STDOUT, "refused\n"); exit 0 }
    put(\*STDOUT, "open\n");
    join_up(\*STDIN, \*STDOUT, $socket);
    exit 0;
}
socket(my $server, PF_INET, SOCK_STREAM, 0) or exit 1;
setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1);
bind($server, sockaddr_in($port, INADDR_LOOPBACK)) or exit 1;
listen($server, 128) or exit 1;
$SIG{CHLD} = 'IGNORE';
while (1) {
    accept(my $client, $server) or next;
    my $child = fork;
    if (defined $child && !$child) {
        close $server;
        my $socket = reach($host, $to);
        join_up($client, $client, $socket) if $socket;
        exit 0;
    }
    close $client;
}
