package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Warm reads what belongs to an image, "repository:tag", off the registry's disk: its
// manifests, blobs, and artifacts that refer to it. A dropped page cache is that of a node;
// a registry that serves an image to thousands of them has it in memory, and what a
// shaped network says of the time to the first byte is not the disk's time of this machine.
// The layout is that of CNCF Distribution's file system driver.
func (r *Registry) Warm(image string) error {
	repository, tag, ok := strings.Cut(image, ":")
	if !ok {
		return fmt.Errorf("%q is no repository:tag", image)
	}
	root := filepath.Join(r.Dir, "content", "docker", "registry", "v2")
	manifests := filepath.Join(root, "repositories", repository, "_manifests")
	first, err := readLink(filepath.Join(manifests, "tags", tag, "current"))
	if err != nil {
		return err
	}
	w := warming{blobs: filepath.Join(root, "blobs"), seen: map[digest.Digest]bool{}}
	if err := w.read(first); err != nil {
		return err
	}
	// What refers to it, found as a registry finds it or by the tag that stands in for that.
	revisions, err := filepath.Glob(filepath.Join(manifests, "revisions", "sha256", "*"))
	if err != nil {
		return err
	}
	for _, dir := range revisions {
		d, err := readLink(dir)
		if os.IsNotExist(err) {
			continue // deleted
		}
		if err != nil {
			return err
		}
		m, err := w.manifest(d)
		if err != nil {
			return err
		}
		if m.Subject != nil && w.seen[m.Subject.Digest] {
			if err := w.read(d); err != nil {
				return err
			}
		}
	}
	for d := range w.seen {
		instead, err := readLink(filepath.Join(manifests, "tags", d.Algorithm().String()+"-"+d.Encoded(), "current"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		if _, err := w.manifest(instead); err != nil {
			return err
		}
	}
	return nil
}

// readLink returns the digest in the file link of a directory.
func readLink(dir string) (digest.Digest, error) {
	b, err := os.ReadFile(filepath.Join(dir, "link"))
	if err != nil {
		return "", err
	}
	return digest.Parse(string(bytes.TrimSpace(b)))
}

// warming reads blobs, each once.
type warming struct {
	blobs string
	seen  map[digest.Digest]bool
}

// manifest is what either an image's manifest or an index names; the other's lists are empty.
type manifest struct {
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Subject   *ocispec.Descriptor  `json:"subject"`
}

func (w *warming) path(d digest.Digest) string {
	return filepath.Join(w.blobs, d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}

// manifest reads a manifest.
func (w *warming) manifest(d digest.Digest) (m manifest, err error) {
	b, err := os.ReadFile(w.path(d))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("manifest %s: %w", d, err)
	}
	return m, nil
}

// read reads a manifest and what it names.
func (w *warming) read(d digest.Digest) error {
	if w.seen[d] {
		return nil
	}
	w.seen[d] = true
	m, err := w.manifest(d)
	if err != nil {
		return err
	}
	blobs := m.Layers
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
	}
	for _, b := range blobs {
		if err := w.blob(b.Digest); err != nil {
			return err
		}
	}
	for _, c := range m.Manifests {
		// Those of platforms that were not pushed are not there.
		if err := w.read(c.Digest); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// blob reads what is no manifest.
func (w *warming) blob(d digest.Digest) error {
	if w.seen[d] {
		return nil
	}
	w.seen[d] = true
	f, err := os.Open(w.path(d))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	_, err = io.Copy(io.Discard, f)
	return err
}
