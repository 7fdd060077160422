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
		for _, k := range pkgs {
			Say(progress, "%s: unpacking Debian's package %s %s", p.name, k.Name, k.Version)
			if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", k.File, tmp).CombinedOutput(); err != nil {
				return fmt.Errorf("dpkg-deb -x %s: %w: %s", k.File, err, out)
			}
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

// wrap writes the script that runs the program at path below dir with the loader
// and the libraries that are below dir, wherever that is mounted.
func wrap(dir, script, path string) error {
	loaders, err := filepath.Glob(filepath.Join(dir, "lib", "*-linux-gnu*", "ld-linux-*.so.*"))
	if err != nil {
		return err
	}
	if len(loaders) == 0 {
		return fmt.Errorf("no loader below %s: does the package not depend on libc6?", filepath.Join(dir, "lib"))
	}
	loader, err := filepath.Rel(dir, loaders[0])
	if err != nil {
		return err
	}
	libs := filepath.Dir(loader)
	text := fmt.Sprintf("#!/bin/sh\nd=$(dirname \"$(readlink -f \"$0\")\")\nexec \"$d/%s\" --library-path \"$d/%s:$d/usr/%s\" \"$d/%s\" \"$@\"\n",
		loader, libs, libs, path)
	return os.WriteFile(script, []byte(text), 0o755)
}
