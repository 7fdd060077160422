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
	body   io.Reader
	h      hash.Hash
	n      int64 // bytes read
	dec    *json.Decoder
	ahead  *tocEntry
	users  map[int]string
	groups map[int]string
	m      memberReader
	// closers free the memory of decompressors.
	closers []io.Closer
}

// newTOC finds the beginning of the entries.
func (l *layerCheck) newTOC() (*tocSide, error) {
	in, err := newMember(l.zstd, io.NewSectionReader(l.file, l.tocOffset, l.tocEnd-l.tocOffset))
	if err != nil {
		return nil, err
	}
	t := &tocSide{h: sha256.New(), users: make(map[int]string), groups: make(map[int]string),
		m: memberReader{f: l.file, end: l.contentEnd, zstd: l.zstd}}
	t.closers = append(t.closers, in)
	var body io.Reader = in
	if !l.zstd {
		tr := tar.NewReader(in)
		h, err := tr.Next()
		if err != nil {
			return nil, err
		}
		if h.Name != encode.TOCName {
			return nil, fmt.Errorf("the member of the TOC holds %q", h.Name)
		}
		body = tr
	}
	t.body = io.TeeReader(body, t)
	t.dec = json.NewDecoder(t.body)
	return t, t.start()
}

// Write takes the bytes of the TOC as they are read.
func (t *tocSide) Write(p []byte) (int, error) {
	t.n += int64(len(p))
	return t.h.Write(p)
}

// close frees memory.
func (t *tocSide) close() {
	for _, c := range append(t.closers, t.m.zr) {
		if c != nil {
			_ = c.Close()
		}
	}
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
	f    *os.File
	zstd bool
	end  int64 // where content ends in the blob
	zr   io.ReadCloser
	off  int64 // of the open member
	pos  int64 // in it, uncompressed
}

// chunk writes n bytes at inner of the member at off to w. A chunk has to be in
// one member: that is what a reader fetches.
func (m *memberReader) chunk(w io.Writer, off, inner, n int64) error {
	if m.zr == nil || off != m.off || inner < m.pos {
		if off < 0 || off >= m.end {
			return fmt.Errorf("offset %d is not in the content", off)
		}
		if m.zr != nil {
			_ = m.zr.Close() // only frees memory
		}
		zr, err := newMember(m.zstd, io.NewSectionReader(m.f, off, m.end-off))
		if err != nil {
			return err
		}
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
