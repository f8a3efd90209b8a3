"""A private PostgreSQL server in a folder of its own, reached by a socket in it: no port, no password, no set-up."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg


def find_postgres():
    """The folder of PostgreSQL's programs: on the path, or where Debian has them. None without any."""
    named = shutil.which("initdb")
    folders = [Path(named).resolve().parent] if named else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in folders if (each / "initdb").exists() and (each / "pg_ctl").exists()), None)


class Postgres:
    """One server. It refuses to run as root, so that root starts it as somebody else."""

    def __init__(self, programs):
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="fg-pg-"))
        self._account = _account() if os.geteuid() == 0 else None
        if self._account:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
        self.data = self.folder / "data"
        self._run("initdb", "-D", self.data, "-U", "owner", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def start(self):
        options = f"-c listen_addresses='' -k {self.folder} -c fsync=off -c max_connections=40 -c shared_buffers=32MB"
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "60", "-l", self.folder / "log", "-o", options, "start")

    def stop(self, mode="fast"):
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", "60", "stop")

    def close(self):
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_store(self):
        """The URL of a schema that holds nothing: one is made sooner than a database."""
        name = f"s{uuid.uuid4().hex}"
        with psycopg.connect(host=str(self.folder), user="owner", dbname="postgres") as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"postgresql://owner:s3cret@/postgres?host={self.folder}&options=-csearch_path%3D{name}"

    def pid(self):
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def _run(self, program, *arguments):
        switch = {"user": self._account.pw_uid, "group": self._account.pw_gid} if self._account else {}
        command = [str(self._programs / program), *map(str, arguments)]
        # pg_ctl's server keeps what it inherits: a pipe would never end.
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=True, cwd="/", timeout=120, **quiet, **switch)


def _account():
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("there is no account but root's to run PostgreSQL as")
