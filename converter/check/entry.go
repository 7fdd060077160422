package check

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apparate/apparate/converter/encode"
)

// xattrPrefix begins the PAX records of extended attributes.
const xattrPrefix = "SCHILY.xattr."

// tarSide reads a tar entry by entry, without what belongs to eStargz.
type tarSide struct {
	all       io.Reader // the tar with its hash
	r         *tar.Reader
	h         hash.Hash
	n         int64
	tocDigest string // of the last TOC entry passed over
}

func newTarSide(r io.Reader) *tarSide {
	t := &tarSide{h: sha256.New()}
	t.all = io.TeeReader(r, t)
	t.r = tar.NewReader(t.all)
	return t
}

// Write takes the bytes of the tar as they are read.
func (t *tarSide) Write(p []byte) (int, error) {
	t.n += int64(len(p))
	return t.h.Write(p)
}

// next returns the next header; nil at the end.
func (t *tarSide) next() (*tar.Header, error) {
	for {
		h, err := t.r.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader || !encode.Reserved(h.Name) {
			return h, nil
		}
		d, _, err := digesting(t.r)
		if err != nil {
			return nil, err
		}
		if encode.CleanName(h.Name) == encode.TOCName {
			t.tocDigest = d
		}
	}
}

// drain reads the rest, for the digest of the whole.
func (t *tarSide) drain() error {
	_, err := io.Copy(io.Discard, t.all)
	return err
}

func (t *tarSide) digest() string { return sum(t.h) }

func nameOf(hs ...*tar.Header) string {
	for _, h := range hs {
		if h != nil {
			return h.Name
		}
	}
	return "the end"
}

func describe(h *tar.Header) string { return fmt.Sprintf("%s (%s)", h.Name, typeName(h)) }

// typeName is what the TOC calls the type.
func typeName(h *tar.Header) string {
	switch h.Typeflag {
	case tar.TypeReg:
		return "reg"
	case tar.TypeDir:
		return "dir"
	case tar.TypeSymlink:
		return "symlink"
	case tar.TypeLink:
		return "hardlink"
	case tar.TypeChar:
		return "char"
	case tar.TypeBlock:
		return "block"
	case tar.TypeFifo:
		return "fifo"
	}
	return fmt.Sprintf("tar type %q", h.Typeflag)
}

// headers compares an entry of the accelerated tar with the source's.
func (l *layerCheck) headers(got, want *tar.Header) {
	for _, f := range []struct {
		name      string
		want, got any
	}{
		{"mode", fmt.Sprintf("%o", want.Mode), fmt.Sprintf("%o", got.Mode)},
		{"uid", want.Uid, got.Uid}, {"gid", want.Gid, got.Gid},
		{"user name", want.Uname, got.Uname}, {"group name", want.Gname, got.Gname},
		{"mtime", stamp(want.ModTime), stamp(got.ModTime)},
		{"link target", want.Linkname, got.Linkname},
		{"device major", want.Devmajor, got.Devmajor}, {"device minor", want.Devminor, got.Devminor},
		{"size", want.Size, got.Size},
	} {
		l.differ("tar: "+f.name, f.want, f.got)
	}
	if maps.Equal(want.PAXRecords, got.PAXRecords) {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(union(want.PAXRecords, got.PAXRecords))) {
		name := "record " + k
		if x, ok := strings.CutPrefix(k, xattrPrefix); ok {
			name = "xattr " + x
		}
		l.differ("tar: "+name, quoted(want.PAXRecords, k), quoted(got.PAXRecords, k))
	}
}

// tocHeader compares a TOC entry with the accelerated tar's header.
func (l *layerCheck) tocHeader(e *tocEntry, h *tar.Header) {
	major, minor := int64(0), int64(0)
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		major, minor = h.Devmajor, h.Devminor
	}
	link := ""
	if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink {
		link = h.Linkname
	}
	mtime := e.ModTime
	if t, err := time.Parse(time.RFC3339Nano, e.ModTime); err == nil {
		mtime = stamp(t)
	}
	for _, f := range []struct {
		name      string
		want, got any
	}{
		{"mode", fmt.Sprintf("%o", h.Mode&0o7777), fmt.Sprintf("%o", e.Mode)},
		{"uid", h.Uid, e.UID}, {"gid", h.Gid, e.GID},
		{"mtime", stamp(h.ModTime), mtime},
		{"link target", link, e.LinkName},
		{"device major", major, e.DevMajor}, {"device minor", minor, e.DevMinor},
		{"size", h.Size, e.Size},
	} {
		l.differ("TOC: "+f.name, f.want, f.got)
	}
	// A TOC gives an entry without a name the last one of the same number, so
	// only names that the tar has can be compared.
	if h.Uname != "" {
		l.differ("TOC: user name", h.Uname, e.UserName)
	}
	if h.Gname != "" {
		l.differ("TOC: group name", h.Gname, e.GroupName)
	}
	want, got := tarXattrs(h), map[string]string{}
	for k, v := range e.Xattrs {
		got[k] = string(v)
	}
	for _, k := range slices.Sorted(maps.Keys(union(want, got))) {
		l.differ("TOC: xattr "+k, quoted(want, k), quoted(got, k))
	}
}

// tarXattrs are the extended attributes of a tar entry.
func tarXattrs(h *tar.Header) map[string]string {
	all := map[string]string{}
	for k, v := range h.PAXRecords {
		if x, ok := strings.CutPrefix(k, xattrPrefix); ok {
			all[x] = v
		}
	}
	return all
}

// contents compares a file's bytes: source, accelerated tar, and chunks by
// offset. It returns false when the TOC speaks of another entry.
func (l *layerCheck) contents(acc, src *tarSide, toc *tocSide, h *tar.Header) (bool, error) {
	want, _, err := digesting(src.r)
	if err != nil {
		return false, l.sourceError(err)
	}
	got, n, err := digesting(acc.r)
	if err != nil {
		l.differ("layer: archive", "readable", err)
		return false, nil
	}
	l.differ("tar: content", want, got)
	if h.Typeflag == tar.TypeXGlobalHeader {
		return true, nil // not in a TOC
	}
	l.c.report.Entries++
	e, err := toc.next()
	if err != nil {
		l.differ("TOC: entry", describe(h), err)
		return false, nil
	}
	if e.Name != h.Name || e.Type != typeName(h) {
		l.differ("TOC: entry", describe(h), fmt.Sprintf("%s (%s)", e.Name, e.Type))
		return false, nil
	}
	l.tocHeader(e, h)
	l.indexEntry(h)
	if h.Typeflag != tar.TypeReg {
		return true, nil
	}
	l.differ("TOC: digest of the content", got, e.Digest)
	if n == 0 {
		return true, nil
	}
	chunks, err := l.chunks(toc, e, n)
	if err != nil {
		l.differ("TOC: chunks", "readable", err)
		return false, nil
	}
	l.differ("TOC: content by offset", got, chunks)
	return true, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func union(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	if all == nil {
		all = make(map[string]string, len(b))
	}
	maps.Copy(all, b)
	return all
}

// quoted is a value that may be absent.
func quoted(m map[string]string, k string) string {
	v, ok := m[k]
	if !ok {
		return "absent"
	}
	return fmt.Sprintf("%q", v)
}
