package tools

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/apparate/apparate/test/debian"
)

// unpacked is a program out of a Debian package, which is unpacked and not
// installed.
type unpacked struct {
	name    string // of the program, for Ensure
	dir     string // in the cache
	release string // of Debian; empty for the machine's
	pkg     string
	path    string // of the program in the package
	test    string // the argument with which it proves to run here
	lacks   string // what may be missing where it does not
	// whole takes what the package depends on as well, and makes the program a
	// script that runs it with those libraries: nothing of the machine is used.
	whole bool
}

func packages() []unpacked {
	const libc = "a libc6 as new as the package's"
	return []unpacked{
		// The library it needs, libseccomp2, is on every Debian: apt itself depends on it.
		{name: Runc, dir: "runc-debian", pkg: "runc", path: "usr/sbin/runc", test: "--version", lacks: "libseccomp2"},
		{name: Nft, dir: "nft-debian", pkg: "nftables", path: "usr/sbin/nft", test: "--version", whole: true},
		{name: Containerd16, dir: "containerd-debian12", release: "bookworm", pkg: "containerd", path: "usr/bin/containerd", test: "--version", lacks: libc},
		{name: Containerd14, dir: "containerd-debian11", release: "bullseye", pkg: "containerd", path: "usr/bin/containerd", test: "--version", lacks: libc},
		{name: MkfsErofs, dir: "erofs-utils-debian13", release: "trixie", pkg: "erofs-utils", path: "usr/bin/mkfs.erofs", test: "--version", whole: true},
		{name: Igzip, dir: "isal-debian", pkg: "isal", path: "usr/bin/igzip", test: "--version", whole: true},
		// It needs libc6 and zlib1g, which dpkg itself depends on.
		{name: Unpigz, dir: "pigz-debian", pkg: "pigz", path: "usr/bin/unpigz", test: "--version", lacks: "zlib1g"},
	}
}

// ensurePackage unpacks p where the cache lacks it and returns the program's path.
func ensurePackage(ctx context.Context, progress io.Writer, cache string, p unpacked) (string, error) {
	dir := filepath.Join(cache, "tools", p.dir)
	program := filepath.Join(dir, p.path)
	if p.whole {
		program = filepath.Join(dir, p.name)
	}
	return program, Make(dir, func(tmp string) error {
		archive := debian.Open(filepath.Join(cache, "debian"), progress)
		if p.release != "" {
			archive = debian.OpenRelease(filepath.Join(cache, "debian-"+p.release), p.release, progress)
		}
		fetch := archive.Fetch
		if p.whole {
			fetch = archive.Closure
		}
		pkgs, err := fetch(ctx, p.pkg)
		if err != nil {
			return err
		}
		if err := unpack(ctx, progress, p.name, tmp, pkgs); err != nil {
			return err
		}
		run := filepath.Join(tmp, p.path)
		if p.whole {
			run = filepath.Join(tmp, p.name)
			if err := wrap(tmp, run, p.path); err != nil {
				return err
			}
		}
		if out, err := exec.CommandContext(ctx, run, p.test).CombinedOutput(); err != nil {
			return fmt.Errorf("%s of Debian does not run here (is %s there?): %w: %s", p.name, p.lacks, err, out)
		}
		return nil
	})
}

// unpack puts the files of packages below dir.
func unpack(ctx context.Context, progress io.Writer, name, dir string, pkgs []debian.Package) error {
	for _, k := range pkgs {
		Say(progress, "%s: unpacking Debian's package %s %s", name, k.Name, k.Version)
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", k.File, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w: %s", k.File, err, out)
		}
	}
	return nil
}

// cgoEnv is the environment of a build that compiles C with the headers and the
// libraries of a Debian package, which is unpacked and not installed.
func cgoEnv(ctx context.Context, progress io.Writer, cache, pkg string) ([]string, error) {
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "gcc"
	}
	if _, err := exec.LookPath(cc); err != nil {
		return nil, fmt.Errorf("a C compiler is needed (apt-get install gcc libc6-dev): %w", err)
	}
	dir := filepath.Join(cache, "tools", pkg+"-debian")
	err := Make(dir, func(tmp string) error {
		pkgs, err := debian.Open(filepath.Join(cache, "debian"), progress).Fetch(ctx, pkg)
		if err != nil {
			return err
		}
		return unpack(ctx, progress, pkg, tmp, pkgs)
	})
	if err != nil {
		return nil, err
	}
	libs, err := filepath.Glob(filepath.Join(dir, "usr", "lib", "*-linux-gnu*"))
	if err != nil {
		return nil, err
	}
	if len(libs) != 1 {
		return nil, fmt.Errorf("package %s has its libraries in %v", pkg, libs)
	}
	return []string{
		"CGO_ENABLED=1",
		"CGO_CFLAGS=-O2 -I" + filepath.Join(dir, "usr", "include") + " -I" + filepath.Join(dir, "usr", "include", filepath.Base(libs[0])),
		"CGO_LDFLAGS=-L" + libs[0],
	}, nil
}

// wrap writes the script that runs the program at path below dir with the loader
// and the libraries that are below dir, wherever that is mounted.
func wrap(dir, script, path string) error {
	var loaders []string
	for _, top := range []string{"lib", "usr/lib"} { // Debian 13 has everything below /usr
		found, err := filepath.Glob(filepath.Join(dir, top, "*-linux-gnu*", "ld-linux-*.so.*"))
		if err != nil {
			return err
		}
		loaders = append(loaders, found...)
	}
	if len(loaders) == 0 {
		return fmt.Errorf("no loader below %s: does the package not depend on libc6?", dir)
	}
	loader, err := filepath.Rel(dir, loaders[0])
	if err != nil {
		return err
	}
	libs := "lib/" + filepath.Base(filepath.Dir(loader))
	// A benchmark starts it for each layer: no other program is started on the way.
	text := fmt.Sprintf("#!/bin/sh\np=$0\n[ -L \"$p\" ] && p=$(readlink -f \"$p\")\nd=${p%%/*}\nexec \"$d/%s\" --library-path \"$d/%s:$d/usr/%s\" \"$d/%s\" \"$@\"\n",
		loader, libs, libs, path)
	return os.WriteFile(script, []byte(text), 0o755)
}
