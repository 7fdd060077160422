package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/apparate/apparate/test/debian"
	"github.com/apparate/apparate/test/tools"
)

// Releases of Debian that a machine can be of, and what is peculiar to them.
const (
	Bullseye = "bullseye" // systemd 247
	Bookworm = "bookworm" // systemd 252
	Trixie   = "trixie"   // systemd 257
)

// topLinks are those of a merged /usr, which no package has.
func topLinks() []string { return []string{"bin", "sbin", "lib", "lib64"} }

// ensureTree unpacks a release of Debian with systemd, and as little else as boots,
// into the cache. No package's scripts are run.
func ensureTree(ctx context.Context, progress io.Writer, release string) (string, error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "tools", "systemd-"+release)
	return dir, tools.Make(dir, func(tmp string) error {
		names := []string{"systemd", "dbus", "runc", "base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "libc-bin", "mount", "util-linux", "procps"}
		if release != Bullseye {
			names = append(names, "usr-is-merged") // else a program that merges, and Perl
		}
		pkgs, err := debian.OpenRelease(filepath.Join(cache, "debian-"+release), release, progress).Closure(ctx, names...)
		if err != nil {
			return err
		}
		tools.Say(progress, "systemd: unpacking %d packages of Debian %s", len(pkgs), release)
		for _, l := range topLinks() {
			if err := errors.Join(os.MkdirAll(filepath.Join(tmp, "usr", l), 0o755), os.Symlink("usr/"+l, filepath.Join(tmp, l))); err != nil {
				return err
			}
		}
		const unpack = `dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink --exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./usr/share/man`
		for _, p := range pkgs {
			if out, err := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", unpack, "unpack", p.File, tmp).CombinedOutput(); err != nil {
				return fmt.Errorf("unpacking %s: %w: %s", p.File, err, out)
			}
		}
		return finish(ctx, tmp)
	})
}

// finish does what the scripts of packages would have done.
func finish(ctx context.Context, tree string) error {
	for _, f := range []string{"passwd", "group"} {
		b, err := os.ReadFile(filepath.Join(tree, "usr/share/base-passwd", f+".master"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tree, "etc", f), b, 0o644); err != nil {
			return err
		}
	}
	for path, text := range map[string]string{
		"etc/shadow": "root:*:1::::::\n", "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n", "etc/machine-id": "",
	} {
		if err := os.WriteFile(filepath.Join(tree, path), []byte(text), 0o600); err != nil {
			return err
		}
	}
	run := filepath.Join(tree, "var/run")
	if err := errors.Join(os.MkdirAll(filepath.Join(tree, "usr/local/bin"), 0o755), os.RemoveAll(run), os.Symlink("/run", run)); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "chroot", tree, "/sbin/ldconfig").CombinedOutput(); err != nil {
		return fmt.Errorf("ldconfig: %w: %s", err, out)
	}
	return nil
}

// containerdUnit is the one that containerd's own releases have.
const containerdUnit = `[Unit]
Description=containerd container runtime
Documentation=https://containerd.io
After=network.target dbus.service

[Service]
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`

// masked are units that would do something to the kernel, which is not the machine's
// alone.
func masked() []string {
	return []string{
		"systemd-journald-audit.socket", "systemd-modules-load.service", "modprobe@.service",
		"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount", "proc-sys-fs-binfmt_misc.automount",
	}
}

// install makes the root of a machine as it is before the first boot: /usr is the
// tree's, all else its own.
func (m *Machine) install(ctx context.Context) error {
	root := m.root()
	for _, d := range []string{"dev", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, l := range topLinks() {
		if err := os.Symlink("usr/"+l, filepath.Join(root, l)); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", filepath.Join(m.tree, "etc"), filepath.Join(m.tree, "var"), root).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	units := filepath.Join(root, "etc/systemd/system")
	for _, u := range masked() {
		if err := os.Symlink(os.DevNull, filepath.Join(units, u)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	wants := filepath.Join(units, "multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	if err := os.Symlink("../containerd.service", filepath.Join(wants, "containerd.service")); err != nil {
		return err
	}
	for path, text := range map[string]string{
		"etc/hostname": m.Name + "\n", "etc/hosts": "127.0.0.1 localhost\n", "etc/fstab": "",
		"etc/systemd/system/containerd.service": containerdUnit,
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
