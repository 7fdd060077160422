package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// Files of a layer in its cache directory.
const (
	tocFile    = "toc"   // of a layer without index
	indexFile  = "index" // its payload
	recordFile = "layer.json"
)

// record is what layer.json holds: all that is needed to serve the layer
// again after a restart. It has no credentials.
type record struct {
	Ref       string        `json:"ref"`
	Digest    digest.Digest `json:"digest"`
	TOCDigest digest.Digest `json:"tocDigest"`
	TOCOffset int64         `json:"tocOffset"`
	// IndexDigest is empty where the manifest names no index. Indexed says that it was
	// good, and is on disk instead of the TOC.
	IndexDigest digest.Digest `json:"indexDigest,omitempty"`
	Indexed     bool          `json:"indexed,omitempty"`
	BlobSize    int64         `json:"blobSize"`
	DataSize    int64         `json:"dataSize"`
}

// entry is a row of the table: a layer that may not be loaded yet.
type entry struct {
	key Key
	// turn lets one caller at a time load.
	turn turn

	// The rest is written by the holder of turn before lay is set, under Manager.mu.
	rec  record
	lay  *layer.Layer
	blob *cache.Blob // the layer's, which closes it
	used time.Time
	// claimed says that an image used the layer: it may go once none does.
	claimed bool
	// full is the whole index, kept until the layer was merged: afterwards the
	// entries are only in the EROFS image and memory is better used.
	full *toc.Index
}

// load makes e readable. With src it may ask the registry; without it only
// what is on disk counts.
func (e *entry) load(ctx context.Context, m *Manager, src *source.Layer) error {
	if err := e.turn.take(ctx); err != nil {
		return err
	}
	defer e.turn.give()
	m.mu.Lock()
	done := e.lay != nil
	m.mu.Unlock()
	if done {
		return nil
	}
	rec, idx, err := m.fromDisk(e.key)
	if err != nil {
		if src == nil {
			return fmt.Errorf("layer %s: %w", e.key, err)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn("layer on disk is unusable, reading its table of contents again", "layer", src.Digest, "error", err)
		}
		rec, idx, err = m.fromRegistry(ctx, e.key, *src)
	}
	if err != nil {
		return err
	}
	return m.start(e, rec, idx)
}

// fromDisk reads what an earlier Add kept. It is verified anew: a directory on
// disk is no more trusted than a registry.
func (m *Manager) fromDisk(key Key) (record, *toc.Index, error) {
	rec, err := m.record(key)
	if err != nil {
		return rec, nil, err
	}
	if rec.Indexed {
		payload, err := m.cfg.Cache.ReadFile(string(key), indexFile)
		if err != nil {
			return rec, nil, err
		}
		idx, err := toc.ParseIndex(payload, rec.IndexDigest)
		return rec, idx, err
	}
	raw, err := m.cfg.Cache.ReadFile(string(key), tocFile)
	if err != nil {
		return rec, nil, err
	}
	idx, err := toc.Parse(raw, rec.TOCDigest, rec.TOCOffset)
	return rec, idx, err
}

// fromRegistry fetches the index, or else the TOC, with one range request and keeps it.
func (m *Manager) fromRegistry(ctx context.Context, key Key, src source.Layer) (record, *toc.Index, error) {
	blob, err := m.cfg.Open(ctx, src.Ref, src.Digest, src.BlobSize)
	if err != nil {
		return record{}, nil, err
	}
	defer func() { _ = blob.Close() }() // the layer opens its own
	rec := record{Ref: src.Ref, Digest: src.Digest, TOCDigest: src.TOCDigest, IndexDigest: src.IndexDigest, BlobSize: blob.Size()}
	raw, idx, err := m.describe(ctx, blob, src, &rec)
	if err == nil {
		err = check(idx)
	}
	if err != nil {
		return record{}, nil, fmt.Errorf("layer %s: %w", src.Digest, err)
	}
	rec.DataSize = idx.DataSize
	b, err := json.Marshal(rec)
	if err != nil {
		return record{}, nil, err
	}
	file := tocFile
	if rec.Indexed {
		file = indexFile
	}
	// The record is written last: it says that the rest is there. A layer that
	// cannot be kept cannot be served after a restart, so it is not lazy.
	if err := m.cfg.Cache.WriteFile(string(key), file, raw); err != nil {
		return record{}, nil, fmt.Errorf("keep the table of contents of %s: %w", src.Digest, err)
	}
	if err := m.cfg.Cache.WriteFile(string(key), recordFile, b); err != nil {
		return record{}, nil, fmt.Errorf("keep the record of %s: %w", src.Digest, err)
	}
	return rec, idx, nil
}

// describe returns the layer's index and what is to be kept of it, and notes in rec
// which of the two forms that is.
func (m *Manager) describe(ctx context.Context, blob fetch.Blob, src source.Layer, rec *record) ([]byte, *toc.Index, error) {
	if src.IndexDigest != "" {
		payload, idx, err := toc.LoadIndex(ctx, blob, src.IndexDigest, toc.Hint{Offset: src.IndexOffset, Size: src.IndexSize})
		var bad *toc.Error
		if !errors.As(err, &bad) {
			rec.Indexed = true
			return payload, idx, err
		}
		m.log.Warn("layer index is unusable, reading the table of contents", "layer", src.Digest, "error", err)
	}
	raw, off, idx, err := toc.Load(ctx, blob, src.TOCDigest, toc.Hint{Offset: src.TOCOffset, Size: src.TOCSize})
	rec.TOCOffset = off
	return raw, idx, err
}

// check says whether the layer can be served and merged. Later is too late:
// once containerd was told that it need not download, nothing can fall back.
func check(idx *toc.Index) error {
	if err := layer.Check(idx); err != nil {
		return err
	}
	return tree.Check(idx)
}

// start opens the cache and makes the reader. The caller has e.turn.
func (m *Manager) start(e *entry, rec record, idx *toc.Index) error {
	cb, err := m.cfg.Cache.Blob(string(e.key), idx)
	if err != nil {
		return fmt.Errorf("layer %s: %w", rec.Digest, err)
	}
	remote, err := m.cfg.Open(m.ctx, rec.Ref, rec.Digest, rec.BlobSize)
	if err != nil {
		return errors.Join(err, cb.Close())
	}
	lean := &toc.Index{Chunks: idx.Chunks, Members: idx.Members, DataSize: idx.DataSize, Compression: idx.Compression}
	l := layer.New(rec.Digest.String(), lean, remote, cb, m.cfg.Layer)
	m.mu.Lock()
	e.rec, e.lay, e.blob, e.full = rec, l, cb, idx
	m.mu.Unlock()
	return nil
}

// index returns the whole index of a layer, from memory or from disk.
func (m *Manager) index(ctx context.Context, key Key) (*toc.Index, error) {
	e, err := m.entry(key)
	if err != nil {
		return nil, err
	}
	if err := e.load(ctx, m, nil); err != nil {
		return nil, err
	}
	m.mu.Lock()
	full := e.full
	m.mu.Unlock()
	if full == nil {
		_, full, err = m.fromDisk(key)
	}
	return full, err
}

// closeLocked lets a layer go; its row stays, so that whoever holds it can
// load it again. The caller holds m.mu.
func (m *Manager) closeLocked(e *entry) error {
	if e.lay == nil {
		return nil
	}
	gone := e.lay.Stats()
	gone.CachedBytes, gone.ContentBytes, gone.BlobBytes = 0, 0, 0
	m.gone = addStats(m.gone, gone)
	err := e.lay.Close()
	e.lay, e.blob, e.full = nil, nil, nil
	return err
}

// record reads layer.json alone.
func (m *Manager) record(key Key) (record, error) {
	var rec record
	b, err := m.cfg.Cache.ReadFile(string(key), recordFile)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("%s: %w", recordFile, err)
	}
	if k, err := KeyOf(source.Layer{Digest: rec.Digest, TOCDigest: rec.TOCDigest, IndexDigest: rec.IndexDigest}); err != nil || k != key {
		return rec, fmt.Errorf("%s is of another layer", recordFile)
	}
	return rec, nil
}

// addStats sums counters; the gauges of layers that were closed do not count.
func addStats(a, b layer.Stats) layer.Stats {
	a.DemandRequests += b.DemandRequests
	a.BackgroundRequests += b.BackgroundRequests
	a.FetchedBytes += b.FetchedBytes
	a.ServedBytes += b.ServedBytes
	a.WaitedReads += b.WaitedReads
	a.DemandBytes += b.DemandBytes
	a.WaitTime += b.WaitTime
	a.SupplyWait += b.SupplyWait
	a.DecodeTime += b.DecodeTime
	a.DigestFailures += b.DigestFailures
	a.CachedBytes += b.CachedBytes
	a.ContentBytes += b.ContentBytes
	a.BlobBytes += b.BlobBytes
	return a
}
