// Package debian fetches Debian packages with the machine's own apt-get and
// reads their files, without installing anything.
//
// Package lists and downloads live in a directory of ours, so nothing of the
// machine's package state is read or changed except its list of mirrors. The
// dependency closure is computed as on an empty machine, which is what an image
// is. apt-get verifies signatures and digests.
//
// OpenRelease does the same for another release of Debian than the machine's.
package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Package is one downloaded Debian package.
type Package struct {
	// Name and Version are as in the package's file name, Version with its epoch.
	Name, Version string
	// File is the path of the .deb file.
	File string
}

// Archive downloads packages into one directory. Archives of several processes
// may share the directory: each call holds its lock file.
type Archive struct {
	dir      string
	progress io.Writer
	release  string   // empty for the machine's own sources
	sources  []string // options of apt-get that replace the machine's sources
}

// Open returns the archive in dir, which is made on first use. Progress lines
// are written to progress.
func Open(dir string, progress io.Writer) *Archive {
	return &Archive{dir: dir, progress: progress}
}

// keyring has the keys of all of Debian's releases; apt itself depends on it.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// OpenRelease returns an archive of the release of Debian with the code name
// release, such as bullseye, and its security updates, instead of what the machine
// is set up for. The packages come from the mirrors that the machine uses and are
// verified with Debian's keys. The directory must not be one of another archive.
func OpenRelease(dir, release string, progress io.Writer) *Archive {
	return &Archive{dir: dir, progress: progress, release: release, sources: []string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=" + filepath.Join(dir, "none"),
	}}
}

// writeSources writes the sources of a release: the machine's own Debian mirrors,
// with the release in place of the machine's.
func (a *Archive) writeSources(ctx context.Context) error {
	if a.release == "" {
		return nil
	}
	cmd := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI) $(CODENAME)", "Created-By: Packages")
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("asking apt-get for its mirrors: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(a.dir, "none"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(releaseSources(string(out), a.release)), 0o644)
}

// releaseSources makes a sources.list out of lines "ORIGIN URI CODENAME" of a
// machine. Machines without package lists know no origins: they get Debian's own
// mirror.
func releaseSources(targets, release string) string {
	main, security := "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		switch {
		case len(f) != 3 || f[0] != "Debian":
		case strings.HasSuffix(f[2], "-security"):
			security = f[1]
		case !strings.Contains(f[2], "-"):
			main = f[1]
		}
	}
	signed := "deb [signed-by=" + keyring + "] "
	return signed + main + " " + release + " main\n" + signed + security + " " + release + "-security main\n"
}

// say writes a progress line. A reader that is gone is no reason to stop.
func (a *Archive) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.progress, "packages: "+format+"\n", args...)
}

// Fetch downloads the named packages, and nothing that they depend on.
func (a *Archive) Fetch(ctx context.Context, names ...string) ([]Package, error) {
	return a.locked(ctx, names, func() ([]Package, error) {
		uris, err := a.apt(ctx, "empty", append([]string{"download", "--print-uris", "-qq"}, names...)...)
		if err != nil {
			return nil, err
		}
		pkgs, err := a.parse(uris)
		if err != nil {
			return nil, err
		}
		if missing(pkgs) {
			_, err = a.apt(ctx, "archives", append([]string{"download", "-qq"}, names...)...)
		}
		return pkgs, err
	})
}

// Closure downloads the named packages and everything they need on an empty
// machine, without recommendations, each before those that depend on it.
func (a *Archive) Closure(ctx context.Context, names ...string) ([]Package, error) {
	return a.locked(ctx, names, func() ([]Package, error) {
		install := append([]string{"install", "--no-install-recommends", "-y", "-qq"}, names...)
		uris, err := a.apt(ctx, "empty", append(install, "--print-uris")...)
		if err != nil {
			return nil, err
		}
		pkgs, err := a.parse(uris)
		if err != nil {
			return nil, err
		}
		if missing(pkgs) {
			_, err = a.apt(ctx, "archives", append(install, "--download-only")...)
		}
		return pkgs, err
	})
}

// locked runs get under the archive's lock. When get fails, the package lists
// may be absent or older than the mirror: they are renewed and get runs once more.
func (a *Archive) locked(ctx context.Context, names []string, get func() ([]Package, error)) (_ []Package, err error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("apt-get is not here: the test images and runc are made from Debian packages, run this on Debian or Ubuntu")
	}
	for _, d := range []string{"lists/partial", "archives/partial", "empty/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(a.dir, "status"), nil, 0o644); err != nil { // nothing is installed
		return nil, err
	}
	unlock, err := lock(filepath.Join(a.dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := a.writeSources(ctx); err != nil {
		return nil, err
	}

	if lists, err := filepath.Glob(filepath.Join(a.dir, "lists", "*Packages*")); err == nil && len(lists) > 0 {
		pkgs, err := get()
		if err == nil {
			return pkgs, nil
		}
		a.say("%v; renewing the package lists", err)
	}
	a.say("reading the lists of Debian's mirror")
	if _, err := a.apt(ctx, "empty", "update", "-qq"); err != nil {
		return nil, err
	}
	pkgs, err := get()
	if err != nil {
		return nil, fmt.Errorf("packages %s: %w", strings.Join(names, " "), err)
	}
	return pkgs, nil
}

// apt runs apt-get on the archive's own state and returns its standard output.
// Downloads are in the sub-directory files; --print-uris leaves out what is
// there already, so a complete list needs an empty one.
func (a *Archive) apt(ctx context.Context, files string, args ...string) ([]byte, error) {
	all := []string{
		"-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::State::status=" + filepath.Join(a.dir, "status"),
		"-o", "Dir::Cache=" + a.dir,
		"-o", "Dir::Cache::pkgcache=packages.bin", // some machines switch it off, and every call reads all lists
		"-o", "Dir::Cache::srcpkgcache=sources.bin",
		"-o", "Dir::Cache::archives=" + files,
		"-o", "APT::Sandbox::User=root",
		"-o", "APT::Keep-Downloaded-Packages=true",
		"-o", "Acquire::Retries=4",
		"-o", "Acquire::http::Timeout=20",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-o", "Debug::NoLocking=true", // our lock covers it
	}
	all = append(all, a.sources...)
	cmd := exec.CommandContext(ctx, "apt-get", append(all, args...)...)
	cmd.Dir = filepath.Join(a.dir, files) // where "download" puts its files
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("apt-get %s: %w: %s", args[0], err, bytes.TrimSpace(msg.Bytes()))
	}
	return out.Bytes(), nil
}

// parse reads lines of --print-uris: 'uri' file size digest.
func (a *Archive) parse(uris []byte) ([]Package, error) {
	var pkgs []Package
	for line := range strings.Lines(string(uris)) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		file := f[1]
		part := strings.SplitN(strings.TrimSuffix(file, ".deb"), "_", 3)
		if len(part) != 3 {
			return nil, fmt.Errorf("apt-get names a file %q that is no package", file)
		}
		version, err := url.PathUnescape(part[1]) // an epoch's colon is escaped
		if err != nil {
			return nil, fmt.Errorf("package file %q: %w", file, err)
		}
		pkgs = append(pkgs, Package{Name: part[0], Version: version, File: filepath.Join(a.dir, "archives", file)})
	}
	if len(pkgs) == 0 {
		return nil, errors.New("apt-get names no files")
	}
	return pkgs, nil
}

func missing(pkgs []Package) bool {
	for _, p := range pkgs {
		if _, err := os.Stat(p.File); errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// Files calls visit for every entry of the package's file tree, in its order.
// Names are clean and relative; the root directory is "."; content is valid
// during the call.
func (p Package) Files(ctx context.Context, visit func(h *tar.Header, content io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a failed visit must not leave dpkg-deb waiting for a reader
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", p.File)
	var msg bytes.Buffer
	cmd.Stderr = &msg
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("reading %s: %w", p.File, err)
	}
	if err := visitAll(tar.NewReader(out), visit); err != nil {
		cancel()
		_ = cmd.Wait() // killed by us: the visitor's error says more
		return fmt.Errorf("package %s: %w", p.Name, err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil { // the padding behind the last entry
		return fmt.Errorf("package %s: %w", p.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("dpkg-deb %s: %w: %s", p.File, err, bytes.TrimSpace(msg.Bytes()))
	}
	return nil
}

func visitAll(r *tar.Reader, visit func(*tar.Header, io.Reader) error) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = filepath.Clean(h.Name)
		if h.Typeflag == tar.TypeLink {
			h.Linkname = filepath.Clean(h.Linkname)
		}
		if err := visit(h, r); err != nil {
			return err
		}
	}
}

// lock takes the lock file at path for this process and returns its release.
func lock(path string) (func() error, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}
