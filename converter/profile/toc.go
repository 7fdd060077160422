package profile

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/fault"
)

const (
	// maxTOCJSON is the longest TOC that is read, uncompressed.
	maxTOCJSON = 4 << 30
	// maxOffsets bounds what is remembered of a TOC: the beginnings of members.
	maxOffsets = 16 << 20
	// maxEntry is the longest entry in bytes of JSON: a decoder holds all of it.
	maxEntry = 8 << 20
)

// tries is how often a request is begun whose body breaks off or is damaged.
const tries = 3

// retrying calls f until it succeeds, fails for good, or has failed often enough.
func retrying(ctx context.Context, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		if err == nil || try == tries || ctx.Err() != nil || !fault.Temporary(err) {
			return err
		}
	}
}

// locate finds the wanted chunks of one layer.
func (im *Image) locate(ctx context.Context, layer int, wanted func(sum [32]byte) bool, names bool) (map[[32]byte]Place, error) {
	return im.readTOC(ctx, layer, func() tocReader { return tocReader{wanted: wanted, names: names} })
}

// readTOC reads the table of contents of a layer. begin is called for each try.
func (im *Image) readTOC(ctx context.Context, layer int, begin func() tocReader) (map[[32]byte]Place, error) {
	l := &im.Layers[layer]
	var found map[[32]byte]Place
	err := retrying(ctx, func() error {
		body, err := im.repo.Range(ctx, l.Digest, l.tocOffset, l.tocSize)
		if err != nil {
			return err
		}
		defer func() { _ = body.Close() }() // everything that matters was read
		t := begin()
		t.layer, t.end = layer, l.tocOffset
		found, err = t.read(body, l.TOCDigest)
		var known *fault.Error
		if err != nil && !errors.As(err, &known) {
			// A damaged transfer looks like a broken layer.
			err = fault.NewTemporary(fault.LayerCorrupt, err, "the table of contents of layer %s of %s cannot be read", l.Digest, im.Ref)
		}
		return err
	})
	return found, err
}

// tocEntry is what is needed of an element of the TOC's "entries" (eStargz
// specification, "TOC").
type tocEntry struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	LinkName    string `json:"linkName"`
	Size        int64  `json:"size"`
	Offset      int64  `json:"offset"`
	InnerOffset int64  `json:"innerOffset"`
	ChunkOffset int64  `json:"chunkOffset"`
	ChunkSize   int64  `json:"chunkSize"`
	ChunkDigest string `json:"chunkDigest"`
}

// tocReader reads one TOC and keeps what is wanted of it.
type tocReader struct {
	layer  int
	end    int64 // where the content ends in the blob
	wanted func(sum [32]byte) bool
	names  bool
	// each, if set, is given every entry, with the chunk of those that have one.
	each    func(e *tocEntry, c *chunkOf)
	found   map[[32]byte]Place
	offsets []int64 // of members
	file    int64   // size of the file whose chunks are being read
}

// read reads a compressed TOC that has the digest.
func (t *tocReader) read(r io.Reader, digest string) (map[[32]byte]Place, error) {
	t.found = make(map[[32]byte]Place)
	in := bufio.NewReaderSize(r, 64<<10)
	head, _ := in.Peek(len(zstdMagic)) // what is shorter is no gzip either
	zr, err := decompress(in)
	if err != nil {
		return nil, err
	}
	defer func() { _ = zr.Close() }() // only frees memory
	text := io.LimitReader(zr, maxTOCJSON)
	if !bytes.Equal(head, zstdMagic) { // in eStargz, the JSON is in a tar
		tr := tar.NewReader(zr)
		h, err := tr.Next()
		if err != nil {
			return nil, err
		}
		if h.Name != encode.TOCName || h.Size > maxTOCJSON {
			return nil, fmt.Errorf("it holds %q, of %d bytes", h.Name, h.Size)
		}
		text = tr
	}
	sum := sha256.New()
	body := &stepReader{r: io.TeeReader(text, sum)}
	dec := json.NewDecoder(body)
	if err := t.entries(dec, func() { body.step = dec.InputOffset() }); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, body.r); err != nil {
		return nil, err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != digest {
		return nil, fmt.Errorf("its digest is %s and not %s", got, digest)
	}
	t.finish()
	return t.found, nil
}

// stepReader ends reading with an error when more than maxEntry is read between two steps.
type stepReader struct {
	r       io.Reader
	n, step int64
}

// Read implements io.Reader.
func (s *stepReader) Read(p []byte) (int, error) {
	if s.n-s.step > maxEntry {
		return 0, fmt.Errorf("an entry is longer than %d bytes", maxEntry)
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	return n, err
}

// entries reads {"version":1,"entries":[...]}, field by field, and calls step after each entry.
func (t *tocReader) entries(dec *json.Decoder, step func()) error {
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return fmt.Errorf("it is no JSON object (%w)", err)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		if key != "entries" {
			var other json.RawMessage
			if err := dec.Decode(&other); err != nil {
				return err
			}
			continue
		}
		if tok, err := dec.Token(); err != nil || tok != json.Delim('[') {
			return fmt.Errorf("its entries are no list (%w)", err)
		}
		for dec.More() {
			var e tocEntry
			if err := dec.Decode(&e); err != nil {
				return err
			}
			if err := t.entry(&e); err != nil {
				return err
			}
			step()
		}
		if _, err := dec.Token(); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

// entry notes an entry. What makes no sense is no chunk: only its content could
// tell what it is, and that is checked.
func (t *tocReader) entry(e *tocEntry) error {
	c, err := t.content(e)
	if t.each != nil && err == nil {
		t.each(e, c)
	}
	return err
}

// content notes the chunk of an entry and returns it, nil where it has none that counts.
func (t *tocReader) content(e *tocEntry) (*chunkOf, error) {
	switch e.Type {
	case "reg":
		t.file = e.Size
	case "chunk":
	default:
		return nil, nil
	}
	if e.ChunkDigest == "" || t.file <= 0 {
		return nil, nil
	}
	if n := len(t.offsets); n == 0 || t.offsets[n-1] != e.Offset {
		if n >= maxOffsets {
			return nil, fmt.Errorf("it has more than %d members", maxOffsets)
		}
		t.offsets = append(t.offsets, e.Offset)
	}
	sum, size, ok := t.chunk(e)
	if !ok || !t.wanted(sum) {
		return nil, nil
	}
	c := &chunkOf{e.ChunkOffset, size, sum}
	if _, have := t.found[sum]; have {
		return c, nil
	}
	p := Place{Layer: t.layer, Size: size, offset: e.Offset, inner: e.InnerOffset}
	if t.names {
		p.Name = e.Name
	}
	t.found[sum] = p
	return c, nil
}

// chunk reads the digest and size of an entry's chunk; ok is false for what is beyond a limit.
func (t *tocReader) chunk(e *tocEntry) (sum [32]byte, size int64, ok bool) {
	if size = e.ChunkSize; size == 0 {
		size = t.file - e.ChunkOffset
	}
	hexed, ok := strings.CutPrefix(e.ChunkDigest, "sha256:")
	if !ok || len(hexed) != 2*len(sum) {
		return sum, 0, false
	}
	if _, err := hex.Decode(sum[:], []byte(hexed)); err != nil {
		return sum, 0, false
	}
	return sum, size, size > 0 && size <= profile.MaxChunk && e.InnerOffset >= 0 && e.InnerOffset <= maxMember && e.Offset >= 0 && e.Offset < t.end
}

// finish finds where the members end: where the next one begins, or before.
func (t *tocReader) finish() {
	slices.Sort(t.offsets)
	for sum, p := range t.found {
		i, _ := slices.BinarySearch(t.offsets, p.offset+1)
		p.end = t.end
		if i < len(t.offsets) {
			p.end = min(t.end, t.offsets[i])
		}
		if p.end-p.offset > maxMember {
			delete(t.found, sum)
			continue
		}
		t.found[sum] = p
	}
	t.offsets = nil
}
