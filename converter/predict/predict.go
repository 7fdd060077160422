// Package predict tells from an image alone what its program reads first: the program,
// its interpreter and the libraries that they are linked with, scripts, the modules that
// a Python program imports. An image that nobody has started yet has a start-up profile
// by it; the samples of real starts replace that.
//
// It is a guess. What it leaves out is fetched when it is read, and what it lists in vain
// costs bandwidth within the budget of a profile; so it rather lists too little, and
// whatever cannot be understood is passed over.
package predict

import (
	"context"
	"io"
	"path"
	"slices"
	"strings"
)

// Type of a file.
type Type uint8

// The types that matter here.
const (
	Other Type = iota
	Regular
	Directory
	Symlink
)

// Info is what a tree knows of a file.
type Info struct {
	Type Type
	Size int64
	// Link is where a Symlink leads.
	Link string
}

// Tree is the files of an image. Names are absolute and clean.
type Tree interface {
	// Lstat looks a name up, and follows no symlink in it.
	Lstat(name string) (Info, bool)
	// List returns the names in a directory, sorted, without its path.
	List(dir string) []string
	// Open opens a regular file. It may fetch; the reader reads nothing ahead.
	Open(ctx context.Context, name string) (io.ReaderAt, error)
}

// Config is the part of an image's configuration that says what is started.
type Config struct {
	Entrypoint, Cmd, Env []string
	WorkingDir           string
}

// Range is a part of a file: Size bytes from Offset.
type Range struct {
	Name         string
	Offset, Size int64
}

// Limits of a prediction.
const (
	// maxFiles is how many files are looked at.
	maxFiles = 4096
	// wholeFile is the longest file in bytes that is taken whole.
	wholeFile = 4 << 20
	// headOf is what is taken of a longer one.
	headOf = 1 << 20
	// maxText is how much of a script or a list is read.
	maxText = 1 << 20
)

// Files lists what the program that c names reads first, in about the order of reading.
// An error is one of reading; what is read may be of any form.
func Files(ctx context.Context, t Tree, c Config) ([]Range, error) {
	p := &predictor{t: t, c: c, seen: map[string]bool{}, env: map[string]string{}}
	for _, e := range c.Env {
		if k, v, ok := strings.Cut(e, "="); ok {
			p.env[k] = v
		}
	}
	p.search = p.librarySearch(ctx)
	for _, name := range systemFiles {
		p.whole(name)
	}
	argv := slices.Concat(c.Entrypoint, c.Cmd)
	for i, word := range argv {
		name, ok := p.command(word)
		if !ok && i > 0 {
			name, ok = p.argument(word)
		}
		if ok {
			p.program(ctx, name)
		}
		if p.err != nil {
			return nil, p.err
		}
	}
	return p.ranges, ctx.Err()
}

// systemFiles are read by the C library on behalf of nearly every program.
var systemFiles = []string{"/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/localtime", "/usr/lib/locale/C.utf8/LC_CTYPE"}

// predictor is one run of Files.
type predictor struct {
	t      Tree
	c      Config
	env    map[string]string
	search []string // directories of libraries
	ranges []Range
	seen   map[string]bool // files that were looked at, by their real names
	err    error           // of reading
}

// resolve follows symlinks to a file that is there.
func (p *predictor) resolve(name string) (string, Info, bool) {
	const maxLinks = 40 // as Linux has it
	parts := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at := "/"
	for links := 0; len(parts) > 0; {
		next := path.Join(at, parts[0])
		parts = parts[1:]
		info, ok := p.t.Lstat(next)
		if !ok {
			return "", Info{}, false
		}
		if info.Type == Symlink {
			if links++; links > maxLinks {
				return "", Info{}, false
			}
			target := info.Link
			if path.IsAbs(target) {
				at = "/"
			}
			parts = append(strings.Split(strings.Trim(target, "/"), "/"), parts...)
			continue
		}
		if at = next; len(parts) == 0 {
			return at, info, true
		}
	}
	return at, Info{Type: Directory}, true
}

// regular resolves a name to a regular file.
func (p *predictor) regular(name string) (string, Info, bool) {
	name, info, ok := p.resolve(name)
	return name, info, ok && info.Type == Regular
}

// command finds what a shell would start for a word.
func (p *predictor) command(word string) (string, bool) {
	if word == "" || len(word) > 4096 {
		return "", false
	}
	if strings.Contains(word, "/") {
		return p.argument(word)
	}
	dirs := p.env["PATH"]
	if dirs == "" {
		dirs = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	for _, dir := range strings.Split(dirs, ":") {
		if name, _, ok := p.regular(path.Join("/", dir, word)); ok {
			return name, true
		}
	}
	return "", false
}

// argument finds the file that a word names, if it does.
func (p *predictor) argument(word string) (string, bool) {
	if word == "" || strings.HasPrefix(word, "-") || len(word) > 4096 {
		return "", false
	}
	if !path.IsAbs(word) {
		word = path.Join("/", p.c.WorkingDir, word)
	}
	name, _, ok := p.regular(word)
	return name, ok
}

// first says that a file was not looked at before, and that it may be.
func (p *predictor) first(name string) bool {
	if p.seen[name] || len(p.seen) >= maxFiles || p.err != nil {
		return false
	}
	p.seen[name] = true
	return true
}

// whole lists all of a file, or the beginning of a large one.
func (p *predictor) whole(name string) (string, bool) {
	name, info, ok := p.regular(name)
	if !ok || !p.first(name) {
		return name, false
	}
	p.add(name, 0, min(info.Size, wholeFile))
	return name, true
}

func (p *predictor) add(name string, off, size int64) {
	if off >= 0 && size > 0 { // what a damaged file says of itself may be neither
		p.ranges = append(p.ranges, Range{name, off, size})
	}
}

// program lists a program with what it needs.
func (p *predictor) program(ctx context.Context, name string) {
	name, info, r, ok := p.openFirst(ctx, name)
	if !ok {
		return
	}
	var magic [4]byte
	n, _ := r.ReadAt(magic[:], 0)
	switch {
	case string(magic[:n]) == "\x7fELF":
		p.elf(ctx, name, info, r)
		p.configuration(name)
		if version, ok := pythonVersion(name); ok {
			p.python(ctx, version)
		}
	case string(magic[:min(n, 2)]) == "#!":
		p.add(name, 0, min(info.Size, wholeFile))
		p.script(ctx, p.text(ctx, name, info))
	default:
		// An argument, which the program that it is for may read.
		p.add(name, 0, min(info.Size, headOf))
	}
}

// openFirst opens a regular file, by whatever name, that was not looked at before.
func (p *predictor) openFirst(ctx context.Context, name string) (found string, info Info, r io.ReaderAt, ok bool) {
	if name, info, ok = p.regular(name); !ok || !p.first(name) {
		return "", Info{}, nil, false
	}
	r, err := p.t.Open(ctx, name)
	if err != nil {
		p.err = err
	}
	return name, info, r, err == nil
}

// text is the beginning of a file.
func (p *predictor) text(ctx context.Context, name string, info Info) string {
	r, err := p.t.Open(ctx, name)
	if err != nil {
		p.err = err
		return ""
	}
	b := make([]byte, min(info.Size, maxText))
	n, _ := r.ReadAt(b, 0) // what cannot be read is not looked at
	return string(b[:n])
}

// script lists the interpreter that the first line names: "#!", a path, and at most one
// argument, which for env(1) is the program that is meant.
func (p *predictor) script(ctx context.Context, script string) {
	line, _, _ := strings.Cut(script, "\n")
	words := strings.Fields(strings.TrimPrefix(line, "#!"))
	for i, word := range words {
		if i > 0 && path.Base(words[0]) != "env" {
			break
		}
		if name, ok := p.command(word); ok {
			p.program(ctx, name)
		}
	}
}

// configuration lists the files of a program's own directory in /etc.
func (p *predictor) configuration(program string) {
	const maxConfiguration, maxListed = 256 << 10, 64
	dir := path.Join("/etc", path.Base(program))
	for i, name := range p.t.List(dir) {
		if i == maxListed {
			return
		}
		if found, info, ok := p.regular(path.Join(dir, name)); ok && info.Size <= maxConfiguration {
			p.whole(found)
		}
	}
}
