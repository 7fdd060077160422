package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/estargz"
	estargzconvert "github.com/containerd/stargz-snapshotter/nativeconverter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// convert makes the image to out of image, for this platform, and pushes it. The
// options are the defaults of ctr-remote image optimize, with --oci, which its
// documentation recommends: without it there is no place for the digests that the
// snapshotter verifies layers with.
func convert(ctx context.Context, c *containerd.Client, image, to, list string) error {
	// Without a platform matcher for what this machine runs, each layer of each
	// platform would be fetched and converted.
	here := platforms.DefaultStrict()
	img, err := c.Fetch(ctx, image, containerd.WithResolver(plain()), containerd.WithPlatformMatcher(here))
	if err != nil {
		return fmt.Errorf("fetching %s: %w", image, err)
	}
	front := map[digest.Digest][]estargz.Option{}
	if list != "" {
		paths, err := readList(list)
		if err != nil {
			return err
		}
		if front, err = prioritized(ctx, c.ContentStore(), img.Target, paths); err != nil {
			return err
		}
	}
	out, err := converter.Convert(ctx, c, to, image, converter.WithPlatform(here), converter.WithDockerToOCI(true),
		converter.WithLayerConvertFunc(estargzconvert.LayerConvertWithLayerAndCommonOptsFunc(front, estargz.WithCompressionLevel(gzip.BestCompression))))
	if err != nil {
		return fmt.Errorf("converting %s: %w", image, err)
	}
	if err := c.Push(ctx, to, out.Target, containerd.WithResolver(plain()), containerd.WithPlatformMatcher(here)); err != nil {
		return fmt.Errorf("pushing %s: %w", to, err)
	}
	return nil
}

// prioritized turns opened files of an image into options for those of its layers
// that hold them.
func prioritized(ctx context.Context, store content.Store, target ocispec.Descriptor, paths []string) (map[digest.Digest][]estargz.Option, error) {
	m, err := images.Manifest(ctx, store, target, platforms.DefaultStrict())
	if err != nil {
		return nil, err
	}
	layers := make([]map[string]bool, len(m.Layers))
	for i, l := range m.Layers {
		if layers[i], err = names(ctx, store, l); err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	options := map[digest.Digest][]estargz.Option{}
	for i, files := range assign(layers, paths) {
		if len(files) > 0 {
			options[m.Layers[i].Digest] = []estargz.Option{estargz.WithPrioritizedFiles(files)}
		}
	}
	return options, nil
}

// assign gives each path to the topmost layer that has it, in the order given, once.
// A path that a layer above removes, by name or with its whole directory, is no one's.
func assign(layers []map[string]bool, paths []string) [][]string {
	const whiteout, opaque = ".wh.", ".wh..wh..opq"
	files, seen := make([][]string, len(layers)), map[string]bool{}
	for _, p := range paths {
		p = clean(p)
		if seen[p] {
			continue
		}
		seen[p] = true
		for i := len(layers) - 1; i >= 0; i-- {
			if layers[i][p] {
				files[i] = append(files[i], p)
				break
			}
			dir, base := path.Split(p)
			if layers[i][dir+whiteout+base] || layers[i][dir+opaque] {
				break
			}
		}
	}
	return files
}

// names lists the entries of a layer.
func names(ctx context.Context, store content.Store, l ocispec.Descriptor) (_ map[string]bool, err error) {
	ra, err := store.ReaderAt(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ra.Close()) }()
	// The decompressor sniffs the format and passes on what is not compressed.
	plain, err := compression.DecompressStream(bufio.NewReader(io.NewSectionReader(ra, 0, l.Size)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	all, r := map[string]bool{}, tar.NewReader(plain)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all[clean(h.Name)] = true
	}
}

// clean is a path as tar names it: relative, without a trailing slash.
func clean(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

// readList reads a list of paths, one a line.
func readList(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var paths []string
	for line := range bytes.Lines(text) {
		if p := strings.TrimSuffix(string(line), "\n"); p != "" {
			paths = append(paths, p)
		}
	}
	return paths, nil
}
