package encode

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// sink writes members to the blob, and what it learns of them to the TOC. It
// alone knows offsets, and belongs to one goroutine at a time.
type sink struct {
	dst   io.Writer
	blob  hash.Hash // of the compressed bytes
	tar   hash.Hash // of the uncompressed bytes
	off   int64     // compressed bytes so far
	size  int64     // uncompressed bytes so far
	toc   *tocWriter
	index *indexWriter
	names owners
	o     Options
	n     int
}

func newSink(dst io.Writer, o Options) (*sink, error) {
	index, err := newIndexWriter(o)
	if err != nil {
		return nil, err
	}
	return &sink{dst: dst, blob: sha256.New(), tar: sha256.New(), toc: newTOCWriter(o.TempDir), index: index, o: o}, nil
}

// Write appends compressed bytes to the blob.
func (s *sink) Write(p []byte) (int, error) {
	n, err := s.dst.Write(p)
	s.off += int64(n)
	_, _ = s.blob.Write(p[:n]) // a hash returns no error
	return n, err
}

// uncompressed is where the tar's bytes pass on their way to a compressor.
type uncompressed struct{ s *sink }

func (u uncompressed) Write(p []byte) (int, error) {
	u.s.size += int64(len(p))
	return u.s.tar.Write(p)
}

// member writes one member and lists what is in it.
func (s *sink) member(m *member) error {
	off := s.off
	if _, err := s.Write(m.out.Bytes()); err != nil {
		return err
	}
	if _, err := (uncompressed{s}).Write(m.raw); err != nil {
		return err
	}
	for _, i := range m.items {
		var err error
		if i.entry != nil {
			err = s.list(i.entry, nil)
		} else {
			err = s.piece(m, &m.pieces[i.piece], off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// piece lists a chunk. The first entry of a file carries the digest of the whole,
// so the chunks of a file wait for the last.
func (s *sink) piece(m *member, p *piece, off int64) error {
	f := p.file
	c := entry{
		Name: f.entry.Name, Type: "chunk",
		Offset: off, InnerOffset: int64(p.start),
		ChunkDigest: sha256Digest(p.digest[:]),
		sum:         p.digest,
	}
	if n := len(f.chunks); n > 0 {
		c.ChunkOffset = f.chunks[n-1].ChunkOffset + f.chunks[n-1].ChunkSize
	}
	// An absent size means "up to the end of the file", as stargz's own writer
	// has it.
	if !p.last || int64(p.len) == s.o.ChunkSize {
		c.ChunkSize = int64(p.len)
	}
	f.chunks = append(f.chunks, c)
	if p.last && f.sum == nil {
		return s.file(f, c.ChunkDigest)
	}
	if f.sum == nil {
		f.sum = sha256.New()
	}
	_, _ = f.sum.Write(m.raw[p.start : p.start+p.len]) // a hash returns no error
	if !p.last {
		return nil
	}
	return s.file(f, sha256Digest(f.sum.Sum(nil)))
}

// file lists a file all of whose chunks are there.
func (s *sink) file(f *file, sum string) error {
	first := f.chunks[0]
	e := f.entry
	e.Offset, e.InnerOffset = first.Offset, first.InnerOffset
	e.ChunkSize, e.ChunkDigest = first.ChunkSize, first.ChunkDigest
	e.Digest = sum
	if err := s.list(e, f.chunks); err != nil {
		return err
	}
	for i := range f.chunks[1:] {
		if err := s.toc.entry(&f.chunks[i+1]); err != nil {
			return err
		}
	}
	f.chunks = nil
	return nil
}

// list adds an entry that is no chunk, to the index with its chunks.
func (s *sink) list(e *entry, chunks []entry) error {
	s.n++
	s.names.shorten(e)
	if err := s.index.entry(e, chunks); err != nil {
		return err
	}
	return s.toc.entry(e)
}

// finish writes the TOC, the index and the footer, and tells what came of it.
func (s *sink) finish() (Layer, error) {
	if s.o.Format == ZstdChunked {
		return s.finishZstd()
	}
	tocOffset := s.off
	tocDigest, err := s.toc.end()
	if err != nil {
		return Layer{}, err
	}
	if err := s.writeTOC(); err != nil {
		return Layer{}, err
	}
	indexOffset := s.off
	indexDigest, indexSize, err := s.index.writeTo(s, tocOffset)
	if err != nil {
		return Layer{}, err
	}
	if indexSize == 0 {
		indexOffset = 0
	}
	if _, err := s.Write(Footer(tocOffset)); err != nil {
		return Layer{}, err
	}
	l := Layer{
		Digest: digest.NewDigest(digest.SHA256, s.blob), DiffID: digest.NewDigest(digest.SHA256, s.tar),
		TOCDigest: tocDigest, Size: s.off, UncompressedSize: s.size,
		TOCOffset: tocOffset, TOCSize: s.off - tocOffset - indexSize - FooterSize, Entries: s.n,
		IndexDigest: indexDigest, IndexOffset: indexOffset, IndexSize: indexSize,
	}
	return l, nil
}

// writeTOC writes the last member: the TOC as a tar entry, and the end of the tar.
func (s *sink) writeTOC() error {
	zw, err := gzip.NewWriterLevel(s, s.o.Level)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(io.MultiWriter(zw, uncompressed{s}))
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: TOCName, Size: s.toc.size, Mode: 0o444}); err != nil {
		return err
	}
	if _, err := io.Copy(tw, s.toc.open()); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return zw.Close()
}

func (s *sink) close() {
	s.toc.close()
	s.index.close()
}

func sha256Digest(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

// owners drops user and group names that readers know already: the format lets
// an entry without a name take the last one of the same number.
type owners struct{ users, groups map[int]string }

func (o *owners) shorten(e *entry) {
	if o.users == nil {
		o.users, o.groups = make(map[int]string), make(map[int]string)
	}
	e.UserName = unlessKnown(o.users, e.UID, e.UserName)
	e.GroupName = unlessKnown(o.groups, e.GID, e.GroupName)
}

func unlessKnown(known map[int]string, id int, name string) string {
	if name == "" || known[id] == name {
		return ""
	}
	known[id] = name
	return name
}
