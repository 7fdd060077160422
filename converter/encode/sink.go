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
	toc   *spool
	names owners
	o     Options
	n     int
}

func newSink(dst io.Writer, o Options) *sink {
	return &sink{dst: dst, blob: sha256.New(), tar: sha256.New(), toc: newSpool(o.TempDir), o: o}
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
			err = s.list(i.entry)
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
		ChunkOffset: int64(len(f.chunks)) * s.o.ChunkSize,
		ChunkDigest: sha256Digest(p.digest[:]),
	}
	// An absent size means "up to the end of the file", as stargz's own writer
	// has it.
	if int64(p.len) == s.o.ChunkSize {
		c.ChunkSize = s.o.ChunkSize
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
	if err := s.list(e); err != nil {
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

// list adds an entry that is no chunk.
func (s *sink) list(e *entry) error {
	s.n++
	s.names.shorten(e)
	return s.toc.entry(e)
}

// finish writes the TOC and the footer, and tells what came of it.
func (s *sink) finish() (Layer, error) {
	tocOffset := s.off
	tocDigest, size, err := s.toc.end()
	if err != nil {
		return Layer{}, err
	}
	if err := s.writeTOC(size); err != nil {
		return Layer{}, err
	}
	tocSize := s.off - tocOffset
	if _, err := s.Write(Footer(tocOffset)); err != nil {
		return Layer{}, err
	}
	return Layer{
		Digest: digest.NewDigest(digest.SHA256, s.blob), DiffID: digest.NewDigest(digest.SHA256, s.tar),
		TOCDigest: tocDigest, Size: s.off, UncompressedSize: s.size,
		TOCOffset: tocOffset, TOCSize: tocSize, Entries: s.n,
	}, nil
}

// writeTOC writes the last member: the TOC as a tar entry, and the end of the tar.
func (s *sink) writeTOC(size int64) error {
	zw, err := gzip.NewWriterLevel(s, s.o.Level)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(io.MultiWriter(zw, uncompressed{s}))
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: TOCName, Size: size, Mode: 0o444}); err != nil {
		return err
	}
	if err := s.toc.copyTo(tw); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return zw.Close()
}

func (s *sink) close() { s.toc.close() }

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
