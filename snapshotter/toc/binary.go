package toc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/layerindex"
	"github.com/apparate/apparate/snapshotter/fetch"
)

// LoadIndex reads the layer index of b with one request, verifies and parses it. It
// returns the index as ParseIndex takes it, to be kept. at says where it is: without a
// TOC's footer nothing else can.
//
// An error that is no read's own concerns the index alone: the TOC may be readable.
func LoadIndex(ctx context.Context, b fetch.Blob, want digest.Digest, at Hint) (payload []byte, idx *Index, err error) {
	if err := checkDigest(want); err != nil {
		return nil, nil, err
	}
	if at.Size > layerindex.MembersSize(layerindex.MaxPayload) {
		return nil, nil, failf(ErrLimit, "the layer index has %d bytes", at.Size)
	}
	if err := at.check(b.Size()); err != nil {
		return nil, nil, err
	}
	raw, err := readRange(ctx, b, at.Offset, at.Size)
	if err != nil {
		return nil, nil, err
	}
	if payload, err = layerindex.Payload(raw); err != nil {
		return nil, nil, failIndex(err)
	}
	idx, err = ParseIndex(payload, want)
	return payload, idx, err
}

// ParseIndex makes the Index of a layer from its binary form, whose digest is want: the
// same that Parse makes from the TOC. Nothing is looked at unless the digest is right.
func ParseIndex(payload []byte, want digest.Digest) (*Index, error) {
	if err := checkDigest(want); err != nil {
		return nil, err
	}
	if got := digest.FromBytes(payload); got != want {
		return nil, failf(ErrDigest, "the layer index has %s, the image names %s", got, want)
	}
	r, err := layerindex.NewReader(payload)
	if err != nil {
		return nil, failIndex(err)
	}
	h := r.Header
	b := &builder{
		x:         Index{Entries: make([]Entry, 0, h.Entries), Chunks: make([]Chunk, 0, h.Chunks), Members: make([]Member, 0, h.Members)},
		tocOffset: h.ContentEnd,
	}
	if h.Zstd {
		b.x.Compression = Zstd
	}
	var (
		e layerindex.Entry
		s rows
	)
	for {
		chunks, err := r.Next(&e)
		if errors.Is(err, io.EOF) {
			return b.finish()
		}
		if err != nil {
			return nil, failIndex(err)
		}
		if err := b.row(&e, chunks, &s); err != nil {
			return nil, err
		}
	}
}

// failIndex turns an error of package layerindex into one of ours.
func failIndex(err error) error {
	if errors.Is(err, layerindex.ErrLimit) {
		return failf(ErrLimit, "%v", err)
	}
	return failf(ErrCorrupt, "%v", err)
}

// rows is what row keeps from one entry to the next.
type rows struct {
	raw rawEntry // to be filled, so that not each entry allocates one
	// known is the last map of extended attributes that was found good: entries share them.
	known uintptr
}

// row takes the next entry of a layer index, with its chunks. What package layerindex
// refuses is not looked for again.
func (b *builder) row(e *layerindex.Entry, chunks []layerindex.Chunk, s *rows) error {
	if b.entries += max(1, len(chunks)); b.entries > maxEntries {
		return failf(ErrLimit, "it has more than %d entries", maxEntries)
	}
	s.raw = rawEntry{size: e.Size, uid: int64(e.UID), gid: int64(e.GID)}
	entry := Entry{
		Path: e.Path, Type: Type(e.Type), Mode: e.Mode & 0o7777, UID: e.UID, GID: e.GID, Sec: e.Sec, Nsec: e.Nsec,
		Size: e.Size, Link: e.Link, DevMajor: e.DevMajor, DevMinor: e.DevMinor, Xattrs: e.Xattrs,
	}
	b.text += len(e.Path) + len(e.Link)
	err := b.checkRow(&entry, s)
	if err == nil && len(chunks) > 0 {
		err = b.contents(&entry, &s.raw, chunks)
	}
	if err != nil {
		var wrong *Error
		if errors.As(err, &wrong) && wrong.Entry == "" {
			wrong.Entry = e.Path // the name is copied only where it is needed
		}
		return err
	}
	b.x.Entries = append(b.x.Entries, entry)
	return nil
}

// checkRow refuses what no inode has.
func (b *builder) checkRow(e *Entry, s *rows) error {
	raw := &s.raw
	if isOurs(e.Path) {
		return raw.fail(ErrHostile, "it belongs to the format and not to the image")
	}
	if err := checkOwner(raw); err != nil {
		return err
	}
	if e.DevMajor > maxDevMajor || e.DevMinor > maxDevMinor {
		return raw.fail(ErrLimit, fmt.Sprintf("Linux has no device %d:%d", e.DevMajor, e.DevMinor))
	}
	if e.Xattrs != nil {
		if at := reflect.ValueOf(e.Xattrs).Pointer(); at != s.known {
			raw.xattrs = e.Xattrs
			n, err := checkXattrs(raw)
			if err != nil {
				return err
			}
			s.known, b.text = at, b.text+n
		}
	}
	if b.text > maxText {
		return failf(ErrLimit, "its names, link targets and extended attributes have more than %d bytes", maxText)
	}
	return nil
}

// contents takes the chunks of a file.
func (b *builder) contents(e *Entry, raw *rawEntry, chunks []layerindex.Chunk) error {
	raw.hasDigest = true
	for i := range chunks {
		c := &chunks[i]
		raw.offset, raw.inner, raw.chunkSize, raw.chunkDigest = c.Offset, c.Inner, c.Size, c.Digest
		var err error
		if i == 0 {
			err = b.openFile(raw, false)
			e.Addr = b.file.addr
		} else {
			raw.chunkOffset = b.file.covered
			err = b.chunk(raw)
		}
		if err != nil {
			return err
		}
	}
	return b.closeFile()
}
