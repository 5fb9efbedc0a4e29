"""Counts visits in PostgreSQL. Where the database is stands in PGHOST, PGPORT and PGPASSWORD, which psql reads."""

import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def query(sql):
    command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


class Visits(BaseHTTPRequestHandler):
    def do_GET(self):
        sql = "select 1" if self.path == "/health" else "insert into visits default values; select count(*) from visits"
        try:
            status, body = 200, query(sql)
        except (subprocess.SubprocessError, OSError) as error:
            status, body = 503, f"database: {type(error).__name__}"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{body}\n".encode())


# The database is healthy before this starts: the manifest says `depends_on`.
query("create table if not exists visits (at timestamptz default now())")
ThreadingHTTPServer(("127.0.0.1", 8000), Visits).serve_forever()
