"""Builds what a real Xen host boots from, out of Debian's packages and the registry's wheels, into a cache folder.

The slow part, dom0's root, is made once for each list of packages: about 3 minutes and 900 MB. The initramfs of dom0
and those of the guests are made at each boot.

The cache is $XENBUSD_CACHE, or ~/.cache/xenbusd; the packages come from $XENBUSD_DEBIAN_MIRROR, or Debian's own.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.xen.archive import Archive

TREE = Path(__file__).parents[2]
HERE = Path(__file__).parent

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
XEN = "4.17"

PACKAGES = (
    "bash",
    "busybox-static",
    "e2fsprogs",
    "fdisk",
    "fio",
    "iproute2",
    "kmod",
    "libnbd-bin",
    "linux-image-amd64",
    "mount",
    "nbd-client",
    "nbdkit",
    "procps",
    "psmisc",
    "python3",
    "qemu-system-xen",
    "qemu-utils",
    "strace",
    "swtpm",
    "swtpm-tools",
    "tpm2-tools",
    "udev",
    "util-linux",
    f"xen-hypervisor-{XEN}-amd64",
    f"xen-utils-{XEN}",
    "xen-utils-common",
    "xenstore-utils",
)
"""Of dom0; guests are given copies of some of its files."""

PYTHON = "3.11"
"""Debian's, in dom0 and in the guests."""
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
"""Whose wheels run with Debian 12's C library."""
NOT_INSIDE = ("mypy", "ruff", "import-linter", "hatchling", "editables")
"""Development tools that nobody needs on the Xen host."""

NEW_DRIVER = "sample"
"""Device class of the package that is made and installed for tests/xen/test_new_driver.py; also where it is staged."""

DOM0_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
GUEST_MODULES = ("xen-blkfront", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "nbd", "crc32c_generic", "ext4")
GUEST_PROGRAMS = ("/sbin/mke2fs", "/sbin/e2fsck")
GUEST_LIBRARIES = ("libxengnttab.so.1", "libxenevtchn.so.1", "libxentoollog.so.1", "libxentoolcore.so.1")
"""What ctypes loads, and so no `ldd` shows; each brings its own libraries."""


@dataclass(frozen=True)
class Image:
    """A built host."""

    root: Path
    """dom0's root; in /opt/site what Python needs."""

    @property
    def kernel(self) -> Path:
        """Linux, for dom0 and the guests."""
        return next(iter(sorted((self.root / "boot").glob("vmlinuz-*"))))

    @property
    def kernel_version(self) -> str:
        """As the folder of its modules is called."""
        return self.kernel.name.removeprefix("vmlinuz-")

    def write_hypervisor(self, path: Path) -> Path:
        """Unpack Xen as QEMU wants it. Return the file."""
        path.write_bytes(gzip.decompress((self.root / "boot" / f"xen-{XEN}-amd64.gz").read_bytes()))
        return path

    def inside(self, *argv: str) -> str:
        """Run a program in the root, and return what it prints."""
        return subprocess.run(["chroot", str(self.root), *argv], check=True, text=True, stdout=subprocess.PIPE).stdout

    def modules(self, name: str) -> list[Path]:
        """A kernel module and what it needs, in the order of loading; relative to the root."""
        lines = self.inside("modprobe", "-S", self.kernel_version, "--show-depends", name).splitlines()
        return [Path(line.split()[1]).relative_to("/") for line in lines if line.startswith("insmod")]

    def libraries(self, program: str) -> list[Path]:
        """The libraries that a program or library is linked with; relative to the root."""
        words = self.inside("ldd", program).split()
        return [Path(word).relative_to("/") for word in words if word.startswith("/")]

    def compile(self, *folders: Path) -> None:
        """Have dom0's own Python compile these folders' modules: under emulation it takes long."""
        lib = self.root / "usr/lib/x86_64-linux-gnu"
        loader = [str(self.root / "lib64/ld-linux-x86-64.so.2"), "--library-path", str(lib)]
        python = [str(self.root / f"usr/bin/python{PYTHON}"), "-m", "compileall", "-q", "-f"]
        options = ["--invalidation-mode", "unchecked-hash"]
        environ = {"PYTHONHOME": str(self.root / "usr")}
        subprocess.run([*loader, *python, *options, *map(str, folders)], check=True, env=environ)


def lacking() -> str | None:
    """Say in one sentence what this machine lacks to build and boot a Xen host; None if nothing."""
    missing = [package for command, package in _COMMANDS if shutil.which(command) is None]
    if missing:
        return f"a Xen host needs {' and '.join(missing)} (Debian: apt-get install {' '.join(missing)})"
    if os.geteuid() != 0:
        return "a Xen host is built and booted by root only"
    return None


_COMMANDS = (("mmdebstrap", "mmdebstrap"), ("qemu-system-x86_64", "qemu-system-x86"))


def wheels() -> list[str]:
    """What has to be installed for our own package and its tests, as pyproject.toml says."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    return sorted(each for each in wanted if not each.startswith(NOT_INSIDE))


def cache() -> Path:
    """The folder of everything built."""
    chosen = os.environ.get("XENBUSD_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xenbusd"


def image() -> Image:
    """Return the built host, building it if its lists have changed or it is not there. Waits for another builder."""
    mirror = os.environ.get("XENBUSD_DEBIAN_MIRROR", MIRROR)
    key = hashlib.sha256("\n".join([SUITE, *PACKAGES, PYTHON, *wheels()]).encode()).hexdigest()[:16]
    home = cache()
    home.mkdir(parents=True, exist_ok=True)
    built = home / f"xen-{key}"
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            print(f"building a Xen host in {built} (once, about 3 minutes)", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=home, prefix="building-") as folder:
                root = Path(folder) / "root"
                _build(root, mirror)
                root.rename(built)
    return Image(built)


def _build(root: Path, mirror: str) -> None:
    packages = ",".join(PACKAGES)
    mmdebstrap = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={packages}"]
    skip = ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
    subprocess.run([*mmdebstrap, *skip, SUITE, str(root), mirror], check=True)
    root.chmod(0o755)
    site = root / "opt/site"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
    for_whom = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:", "--target", str(site)]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    subprocess.run([*pip, *for_whom, *platforms, *wheels()], check=True)
    Image(root).compile(site)


def dom0_initramfs(image: Image) -> Archive:
    """What mounts dom0's root: busybox, a few modules, and inside/initramfs.sh."""
    archive = Archive()
    _add_busybox(archive, image)
    _add_modules(archive, image, DOM0_MODULES)
    archive.file("init", (HERE / "inside" / "initramfs.sh").read_bytes(), executable=True)
    return archive


def guest_base(image: Image) -> Archive:
    """A guest's root: busybox, modules, a few programs, and the jobs in guest/."""
    archive = Archive()
    _add_busybox(archive, image)
    _add_modules(archive, image, GUEST_MODULES)
    for program in GUEST_PROGRAMS:
        _add_program(archive, image, program)
    archive.copy(image.root / "etc/mke2fs.conf", "etc/mke2fs.conf")
    archive.file("init", (HERE / "guest" / "init.sh").read_bytes(), executable=True)
    for job in sorted((HERE / "guest").glob("*.sh")):
        archive.file(f"jobs/{job.name}", job.read_bytes(), executable=True)
    for program in ("poweroff", "reboot"):  # what the kernel runs when the toolstack asks for it
        archive.file(f"sbin/{program}", f"#!/bin/sh\numount -a -r\nexec /bin/{program} -f\n".encode(), executable=True)
    return archive


def guest_python(image: Image) -> Archive:
    """More for a guest's root: Python with what the agent needs, not the agent itself."""
    archive = Archive()
    _add_program(archive, image, f"/usr/bin/python{PYTHON}")
    archive.link("usr/bin/python3", f"python{PYTHON}")
    seldom = frozenset(
        {"test", "idlelib", "lib2to3", "ensurepip", "tkinter", "pydoc_data", "turtledemo", "__pycache__"}
    )
    archive.copy_tree(
        image.root / f"usr/lib/python{PYTHON}", f"usr/lib/python{PYTHON}", without=seldom - {"__pycache__"}
    )
    tests = frozenset({"pytest", "_pytest", "pytest_asyncio", "hypothesis", "bin"})
    archive.copy_tree(image.root / "opt/site", "opt/site", without=tests)
    for extension in sorted((image.root / f"usr/lib/python{PYTHON}/lib-dynload").glob("*.so")):
        _add_libraries(archive, image, f"/usr/lib/python{PYTHON}/lib-dynload/{extension.name}")
    folder = "/usr/lib/x86_64-linux-gnu"
    for library in GUEST_LIBRARIES:
        archive.copy(image.root / folder[1:] / library, f"{folder[1:]}/{library}")
        _add_libraries(archive, image, f"{folder}/{library}")
    return archive


def guest_tree(tree: Path, meta: Path) -> Archive:
    """More for a guest's root: our own package, as it stands in `tree`, and what `write_metadata` wrote to `meta`."""
    archive = Archive()
    for folder, place in ((tree / "xenbusd", "xenbusd"), (tree / "drivers", "drivers"), (meta, "meta")):
        archive.copy_tree(folder, f"mnt/tree/{place}")
    return archive


def _add_busybox(archive: Archive, image: Image) -> None:
    archive.copy(image.root / "usr/bin/busybox", "bin/busybox")
    for applet in image.inside("busybox", "--list").split():
        if applet not in ("busybox", "nbd-client", "modprobe"):
            archive.link(f"bin/{applet}", "busybox")
    for folder in ("proc", "sys", "dev", "mnt", "tmp", "run"):
        archive.folder(folder)


def _add_modules(archive: Archive, image: Image, names: tuple[str, ...]) -> None:
    """Put modules into /mods, and beside each NAME a NAME.list of what to load, in order."""
    for name in names:
        files = image.modules(name)
        for file in files:
            archive.copy(image.root / file, f"mods/{file.name}")
        archive.file(f"mods/{name}.list", "".join(f"{file.name}\n" for file in files).encode())


def _add_program(archive: Archive, image: Image, program: str) -> None:
    archive.copy(image.root / program[1:], program[1:])
    _add_libraries(archive, image, program)


def _add_libraries(archive: Archive, image: Image, program: str) -> None:
    for library in image.libraries(program):
        archive.copy(image.root / library, str(library))


def stage(image: Image, tree: Path) -> Path:
    """Copy the work tree as it is now to `tree`, compiled, with the metadata that makes its entry points be found.

    So nobody's edit in the middle of a run changes what is tested.
    """
    forget = shutil.ignore_patterns("__pycache__", ".*")
    for top in ("xenbusd", "drivers", "hotplug", "systemd", "docs", "tests"):
        shutil.copytree(TREE / top, tree / top, ignore=forget)
    shutil.copy(TREE / "pyproject.toml", tree)
    write_metadata(tree / "meta")
    install_new_driver(tree / NEW_DRIVER)
    image.compile(tree / "xenbusd", tree / "drivers", tree / "tests", tree / NEW_DRIVER)
    return tree


def install_new_driver(site: Path) -> None:
    """Have `xenbusctl new-driver` write a package, and pip install it from its own folder to `site`, with no network.

    Here, and not in dom0, because Debian's Python has no pip, and the one of dom0 is the same version as ours.
    """
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        new_driver = [sys.executable, "-m", "xenbusd.cli.ctl", "new-driver", NEW_DRIVER, "--into", folder]
        subprocess.run(new_driver, check=True, cwd=TREE, stdout=subprocess.DEVNULL)
        pip = [sys.executable, "-m", "pip", "install", "-q", *offline, "--root-user-action=ignore", "--no-compile"]
        subprocess.run([*pip, "--target", str(site), f"{folder}/xenbusd-{NEW_DRIVER}"], check=True)


def write_metadata(folder: Path) -> None:
    """Make a folder that, in Python's path, has our entry points found as if we were installed."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in of.items()) for group, of in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
