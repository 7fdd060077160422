package images

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/toc"
)

// Key names a layer: its blob digest and the first 16 hex digits of its TOC digest, and
// of its index digest if it has an index. Those are part of the name because they decide
// the layout of the layer's address space: two manifests that pair one blob with
// different TOCs or indexes must not share a cache entry.
type Key string

// KeyOf returns the key of a layer. Its digests have to be sha256.
func KeyOf(l source.Layer) (Key, error) {
	if l.TOCDigest == "" {
		return "", toc.ErrNoDigest
	}
	digests := []digest.Digest{l.Digest, l.TOCDigest}
	if l.IndexDigest != "" {
		digests = append(digests, l.IndexDigest)
	}
	key := ""
	for _, d := range digests {
		if err := d.Validate(); err != nil {
			return "", fmt.Errorf("layer digest %q: %w", d, err)
		}
		if d.Algorithm() != digest.SHA256 {
			return "", errors.New("layer digest " + d.String() + ": only sha256 is supported")
		}
		if key == "" {
			key = d.Encoded()
		} else {
			key += "-" + d.Encoded()[:16]
		}
	}
	return Key(key), nil
}

// keysOf returns the keys of layers, in their order.
func keysOf(layers []source.Layer) ([]Key, error) {
	keys := make([]Key, len(layers))
	for i, l := range layers {
		var err error
		if keys[i], err = KeyOf(l); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// Node is the FUSE node id of the layer's data, and its file name in
// hexadecimal. It follows from the key alone, so that a daemon started anew
// answers to the ids its predecessor gave out. 0 and 1 are FUSE's own.
func (k Key) Node() uint64 {
	h := sha256.Sum256([]byte(k))
	n := binary.BigEndian.Uint64(h[:]) >> 1
	if n < 2 {
		n += 2
	}
	return n
}

// File is the name of the layer's data in the FUSE file system.
func (k Key) File() string { return fileName(k.Node()) }

func fileName(node uint64) string { return fmt.Sprintf("%016x", node) }

// imageID names a chain of layers, bottom first, and how it was merged.
func imageID(keys []Key, keepWhiteouts bool) string {
	h := sha256.New()
	for _, k := range keys {
		_, _ = fmt.Fprintln(h, k) // a hash never fails
	}
	_, _ = fmt.Fprintln(h, keepWhiteouts)
	return fmt.Sprintf("%x", h.Sum(nil)[:16])
}
