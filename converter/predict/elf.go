package predict

import (
	"context"
	"debug/elf"
	"io"
	"path"
	"strings"
)

// elf lists a program or library and, depth first as the loader maps them, what it is
// linked with (System V ABI, "Dynamic Linking").
func (p *predictor) elf(ctx context.Context, name string, info Info, r io.ReaderAt) {
	f, err := elf.NewFile(io.NewSectionReader(r, 0, info.Size))
	if err != nil {
		p.add(name, 0, min(info.Size, headOf))
		return
	}
	p.parts(name, info, f)
	for _, prog := range f.Progs {
		if prog.Type != elf.PT_INTERP || prog.Filesz > 4096 {
			continue
		}
		b := make([]byte, prog.Filesz)
		if n, _ := prog.ReadAt(b, 0); n > 0 {
			p.library(ctx, strings.TrimRight(string(b[:n]), "\x00"))
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return
	}
	dirs := p.ownDirs(name, f)
	for _, lib := range needed {
		p.needed(ctx, lib, dirs)
	}
}

// parts lists what of a file is mapped and used at once: all of a small one; of a large
// one its beginning and the sections by which it is linked and initialised.
func (p *predictor) parts(name string, info Info, f *elf.File) {
	if info.Size <= wholeFile {
		p.add(name, 0, info.Size)
		return
	}
	p.add(name, 0, headOf)
	for _, s := range f.Sections {
		switch {
		case s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_ALLOC == 0 || s.Offset >= uint64(info.Size):
			continue
		case s.Name == ".text" || s.Name == ".rodata" || s.Name == ".eh_frame":
			continue
		}
		off := int64(s.Offset)
		p.add(name, off, min(int64(s.FileSize), info.Size-off, wholeFile))
	}
	// Programs begin there.
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_LOAD && f.Entry >= prog.Vaddr && f.Entry-prog.Vaddr < prog.Filesz {
			off := int64(prog.Off + f.Entry - prog.Vaddr)
			p.add(name, off, min(int64(headOf/4), info.Size-off))
		}
	}
}

// ownDirs are the directories in which a file wants its libraries to be looked for.
func (p *predictor) ownDirs(name string, f *elf.File) (dirs []string) {
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		lists, err := f.DynString(tag)
		if err != nil {
			continue
		}
		for _, list := range lists {
			for _, dir := range strings.Split(list, ":") {
				origin := path.Dir(name)
				dir = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(dir)
				if path.IsAbs(dir) {
					dirs = append(dirs, dir)
				}
			}
		}
	}
	return dirs
}

// needed finds a library by name, where the loader would.
func (p *predictor) needed(ctx context.Context, lib string, dirs []string) {
	if strings.Contains(lib, "/") {
		p.library(ctx, lib)
		return
	}
	for _, list := range [][]string{dirs, p.search} {
		for _, dir := range list {
			if name, _, ok := p.regular(path.Join(dir, lib)); ok {
				p.library(ctx, name)
				return
			}
		}
	}
}

// library lists a library with what it needs.
func (p *predictor) library(ctx context.Context, name string) {
	if name, info, r, ok := p.openFirst(ctx, name); ok {
		p.elf(ctx, name, info, r)
	}
}

// librarySearch is where libraries are: what the environment says, ld.so.conf(5) with
// the files it includes, musl's list, and the usual places.
func (p *predictor) librarySearch(ctx context.Context) (dirs []string) {
	if list := p.env["LD_LIBRARY_PATH"]; list != "" {
		dirs = append(dirs, strings.Split(list, ":")...)
	}
	files := []string{"/etc/ld.so.conf"}
	for _, name := range p.t.List("/etc/ld.so.conf.d") {
		if strings.HasSuffix(name, ".conf") {
			files = append(files, path.Join("/etc/ld.so.conf.d", name))
		}
	}
	for _, name := range p.t.List("/etc") {
		if strings.HasPrefix(name, "ld-musl-") && strings.HasSuffix(name, ".path") {
			files = append(files, path.Join("/etc", name))
		}
	}
	for _, file := range files {
		name, info, ok := p.regular(file)
		if !ok {
			continue
		}
		for _, dir := range strings.FieldsFunc(p.text(ctx, name, info), func(c rune) bool { return c == '\n' || c == ':' }) {
			if dir = strings.TrimSpace(dir); path.IsAbs(dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	for _, triplet := range []string{"x86_64-linux-gnu", "aarch64-linux-gnu"} {
		dirs = append(dirs, "/lib/"+triplet, "/usr/lib/"+triplet)
	}
	return append(dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
}
