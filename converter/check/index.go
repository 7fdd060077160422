package check

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/layerindex"
	"github.com/apparate/apparate/converter/encode"
)

// indexSide reads the layer index beside the TOC. The zero value is that of a layer
// without one, and says nothing.
type indexSide struct {
	r      *layerindex.Reader
	chunks []layerindex.Chunk // of the entry, those that were not compared
}

// findIndex says where the index begins by the annotations, which are compared with the
// blob: an index fills the space between the TOC and the footer. Without annotations it
// is where the footer is.
func (l *layerCheck) findIndex() (offset int64) {
	end := l.footerAt
	a := l.p.acc.Annotations
	if a[image.AnnotationIndexDigest] == "" && a[image.AnnotationIndexOffset] == "" && a[image.AnnotationIndexSize] == "" {
		return end
	}
	offset, err := strconv.ParseInt(a[image.AnnotationIndexOffset], 10, 64)
	if err != nil || offset <= l.tocOffset || offset >= end {
		l.differ("annotation "+image.AnnotationIndexOffset, fmt.Sprintf("between %d and %d", l.tocOffset, end), a[image.AnnotationIndexOffset])
		return end
	}
	l.differ("annotation "+image.AnnotationIndexSize, end-offset, a[image.AnnotationIndexSize])
	return offset
}

// openIndex reads the index that begins at offset.
func (l *layerCheck) openIndex(offset int64) indexSide {
	end := l.footerAt
	if offset == end {
		return indexSide{}
	}
	if end-offset > layerindex.MembersSize(layerindex.MaxPayload) {
		l.differ("index: size", fmt.Sprintf("up to %d", layerindex.MembersSize(layerindex.MaxPayload)), end-offset)
		return indexSide{}
	}
	b := make([]byte, end-offset)
	if _, err := l.file.ReadAt(b, offset); err != nil {
		l.differ("index", "readable", err)
		return indexSide{}
	}
	payload, err := layerindex.Payload(b)
	if err != nil {
		l.differ("index", "readable", err)
		return indexSide{}
	}
	digest := sha256.Sum256(payload)
	l.differ("annotation "+image.AnnotationIndexDigest, "sha256:"+hex.EncodeToString(digest[:]), l.p.acc.Annotations[image.AnnotationIndexDigest])
	r, err := layerindex.NewReader(payload)
	if err != nil {
		l.differ("index", "readable", err)
		return indexSide{}
	}
	l.differ("index: end of the content", l.contentEnd, r.Header.ContentEnd)
	l.differ("index: zstd", l.zstd, r.Header.Zstd)
	return indexSide{r: r}
}

// indexEntry compares the next entry of the index with the accelerated tar's header.
func (l *layerCheck) indexEntry(h *tar.Header) {
	x := &l.index
	if x.r == nil {
		return
	}
	var e layerindex.Entry
	var err error
	if x.chunks, err = x.r.Next(&e); err != nil {
		l.differ("index: entry", describe(h), err)
		x.r = nil // it is of no more use
		return
	}
	major, minor, link := int64(0), int64(0), ""
	switch h.Typeflag {
	case tar.TypeChar, tar.TypeBlock:
		major, minor = h.Devmajor, h.Devminor
	case tar.TypeSymlink:
		link = h.Linkname
	case tar.TypeLink:
		link = encode.CleanName(h.Linkname)
	}
	for _, f := range []struct {
		name      string
		want, got any
	}{
		{"name", encode.CleanName(h.Name), e.Path}, {"type", typeName(h), indexTypes[e.Type]},
		{"mode", fmt.Sprintf("%o", h.Mode&0o7777), fmt.Sprintf("%o", e.Mode)},
		{"uid", h.Uid, e.UID}, {"gid", h.Gid, e.GID},
		{"mtime seconds", h.ModTime.Unix(), e.Sec}, {"mtime nanoseconds", h.ModTime.Nanosecond(), e.Nsec},
		{"link target", link, e.Link}, {"size", h.Size, e.Size},
		{"device major", major, e.DevMajor}, {"device minor", minor, e.DevMinor},
	} {
		l.differ("index: "+f.name, f.want, f.got)
	}
	want, got := tarXattrs(h), map[string]string{}
	for k, v := range e.Xattrs {
		got[k] = string(v)
	}
	for _, k := range slices.Sorted(maps.Keys(union(want, got))) {
		l.differ("index: xattr "+k, quoted(want, k), quoted(got, k))
	}
}

// indexTypes are the types' names in a TOC.
var indexTypes = map[layerindex.Type]string{
	layerindex.Dir: "dir", layerindex.Reg: "reg", layerindex.Symlink: "symlink", layerindex.Hardlink: "hardlink",
	layerindex.Char: "char", layerindex.Block: "block", layerindex.Fifo: "fifo",
}

// indexChunk compares the next chunk of the entry with what the TOC says of it, n bytes.
func (l *layerCheck) indexChunk(e *tocEntry, n int64) {
	x := &l.index
	if x.r == nil {
		return
	}
	if len(x.chunks) == 0 {
		l.differ("index: chunk", fmt.Sprintf("one at %d", e.ChunkOffset), "none")
		return
	}
	c := x.chunks[0]
	x.chunks = x.chunks[1:]
	l.differ(fmt.Sprintf("index: chunk at %d", e.ChunkOffset),
		fmt.Sprintf("%d bytes at %d+%d, %s", n, e.Offset, e.InnerOffset, e.ChunkDigest),
		fmt.Sprintf("%d bytes at %d+%d, sha256:%x", c.Size, c.Offset, c.Inner, c.Digest))
}

// indexEnd: when the tar is done the index has to be done.
func (l *layerCheck) indexEnd() {
	x := &l.index
	if x.r == nil {
		return
	}
	var e layerindex.Entry
	if _, err := x.r.Next(&e); err == nil {
		l.entry = e.Path
		l.differ("index: entry", "no more entries", indexTypes[e.Type])
	} else if !errors.Is(err, io.EOF) {
		l.differ("index", "readable", err)
	}
}
