package check

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"

	"github.com/apparate/apparate/converter/encode"
)

// tocEntry is an element of the TOC's "entries" (eStargz specification, "TOC").
type tocEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size"`
	ModTime     string            `json:"modtime"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	UID         int               `json:"uid"`
	GID         int               `json:"gid"`
	UserName    string            `json:"userName"`
	GroupName   string            `json:"groupName"`
	Offset      int64             `json:"offset"`
	InnerOffset int64             `json:"innerOffset"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      string            `json:"digest"`
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkDigest string            `json:"chunkDigest"`
}

// tocSide reads the TOC entry by entry: one of 10 million files does not fit
// into memory.
type tocSide struct {
	zr     *gzip.Reader
	body   io.Reader
	h      hash.Hash
	dec    *json.Decoder
	ahead  *tocEntry
	users  map[int]string
	groups map[int]string
	m      memberReader
}

// newTOC finds the beginning of the entries in the member at off.
func newTOC(f *os.File, off, size int64) (*tocSide, error) {
	zr, err := gzip.NewReader(io.NewSectionReader(f, off, size))
	if err != nil {
		return nil, err
	}
	zr.Multistream(false)
	tr := tar.NewReader(zr)
	h, err := tr.Next()
	if err != nil {
		return nil, err
	}
	if h.Name != encode.TOCName {
		return nil, fmt.Errorf("the member of the TOC holds %q", h.Name)
	}
	t := &tocSide{zr: zr, h: sha256.New(), users: make(map[int]string), groups: make(map[int]string), m: memberReader{f: f, end: off}}
	t.body = io.TeeReader(tr, t.h)
	t.dec = json.NewDecoder(t.body)
	return t, t.start()
}

// start reads up to the first entry: {"version":1,"entries":[
func (t *tocSide) start() error {
	if err := t.expect(json.Delim('{')); err != nil {
		return err
	}
	for {
		key, err := t.dec.Token()
		if err != nil {
			return err
		}
		if key == "entries" {
			return t.expect(json.Delim('['))
		}
		if key != "version" {
			return fmt.Errorf("unknown field %v", key)
		}
		if err := t.expect(1.0); err != nil {
			return err
		}
	}
}

func (t *tocSide) expect(want json.Token) error {
	got, err := t.dec.Token()
	if err == nil && got != want {
		err = fmt.Errorf("%v where %v belongs", got, want)
	}
	return err
}

// raw returns the next element, chunk or not; io.EOF behind the last.
func (t *tocSide) raw() (*tocEntry, error) {
	if e := t.ahead; e != nil {
		t.ahead = nil
		return e, nil
	}
	if !t.dec.More() {
		return nil, io.EOF
	}
	var e tocEntry
	if err := t.dec.Decode(&e); err != nil {
		return nil, err
	}
	return &e, nil
}

// next returns the next entry, with the names that it inherits.
func (t *tocSide) next() (*tocEntry, error) {
	e, err := t.raw()
	if err != nil {
		return nil, err
	}
	e.UserName = inherit(t.users, e.UID, e.UserName)
	e.GroupName = inherit(t.groups, e.GID, e.GroupName)
	return e, nil
}

func inherit(known map[int]string, id int, name string) string {
	if name == "" {
		return known[id]
	}
	known[id] = name
	return name
}

// end makes sure that nothing follows the entries.
func (t *tocSide) end() error {
	for _, want := range []json.Token{json.Delim(']'), json.Delim('}')} {
		if err := t.expect(want); err != nil {
			return err
		}
	}
	if _, err := t.dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the entries")
	}
	_, err := io.Copy(io.Discard, t.body)
	return err
}

func (t *tocSide) digest() string { return sum(t.h) }

// chunks reads the file of entry e, size bytes long, by the offsets of its
// chunks, and returns the digest of what it read.
func (l *layerCheck) chunks(toc *tocSide, e *tocEntry, size int64) (string, error) {
	whole := sha256.New()
	for at := int64(0); ; {
		n := e.ChunkSize
		if n == 0 {
			n = size - at
		}
		if e.ChunkOffset != at || n <= 0 || n > size-at {
			return "", fmt.Errorf("a chunk has the bytes from %d to %d, where those from %d of %d belong", e.ChunkOffset, e.ChunkOffset+n, at, size)
		}
		l.indexChunk(e, n)
		h := sha256.New()
		if err := toc.m.chunk(io.MultiWriter(h, whole), e.Offset, e.InnerOffset, n); err != nil {
			return "", fmt.Errorf("chunk at %d: %w", at, err)
		}
		l.differ(fmt.Sprintf("TOC: digest of the chunk at %d", at), "sha256:"+hex.EncodeToString(h.Sum(nil)), e.ChunkDigest)
		if at += n; at == size {
			return sum(whole), nil
		}
		var err error
		if e, err = toc.raw(); err != nil {
			return "", err
		}
		if e.Type != "chunk" {
			toc.ahead = e
			return "", fmt.Errorf("only %d of %d bytes have chunks", at, size)
		}
	}
}

// memberReader reads chunks by their place. Chunks that share a member come one
// after another, so it stays where it was.
type memberReader struct {
	f   *os.File
	end int64 // where content ends in the blob
	zr  *gzip.Reader
	off int64 // of the open member
	pos int64 // in it, uncompressed
}

// chunk writes n bytes at inner of the member at off to w. A chunk has to be in
// one member: that is what a reader fetches.
func (m *memberReader) chunk(w io.Writer, off, inner, n int64) error {
	if m.zr == nil || off != m.off || inner < m.pos {
		if off < 0 || off >= m.end {
			return fmt.Errorf("offset %d is not in the content", off)
		}
		zr, err := gzip.NewReader(io.NewSectionReader(m.f, off, m.end-off))
		if err != nil {
			return err
		}
		zr.Multistream(false)
		m.zr, m.off, m.pos = zr, off, 0
	}
	skipped, err := io.CopyN(io.Discard, m.zr, inner-m.pos)
	m.pos += skipped
	if err != nil {
		return fmt.Errorf("skip to %d: %w", inner, err)
	}
	read, err := io.CopyN(w, m.zr, n)
	m.pos += read
	return err
}
