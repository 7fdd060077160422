package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/link"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

const (
	plainTag = "v1"
	lazyTag  = plainTag + "-apparate"
)

// startLimit is when a start is given up, from the pull request on.
const startLimit = 2 * time.Minute

// bench is a running registry with everything to measure on it.
type bench struct {
	options
	prepared
	progress io.Writer
	dir      string // of all state; removed at the end
	registry *node.Registry
}

// measureAll converts and starts every image.
func measureAll(ctx context.Context, progress io.Writer, o options, p prepared) (_ results, err error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return results{}, err
	}
	// Not in /tmp, which may be memory: this is the disk that images are unpacked to.
	dir, err := os.MkdirTemp(cache, "demo-")
	if err != nil {
		return results{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r, err := node.StartRegistry(ctx, p.tools[tools.Registry], filepath.Join(dir, "registry"))
	if err != nil {
		return results{}, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	b := &bench{options: o, prepared: p, progress: progress, dir: dir, registry: r}

	tools.Say(progress, "link: checking %d Mbit/s and %v", o.mbits, o.rtt)
	if err := link.Check(ctx, o.mbits*1e6, o.rtt); err != nil {
		return results{}, err
	}
	var all results
	for _, s := range p.images {
		one, err := b.image(ctx, s, &all)
		if err != nil {
			return results{}, fmt.Errorf("image %s: %w", s.name, err)
		}
		all.Images = append(all.Images, one)
	}
	all.Convert.finish()
	return all, nil
}

// image pushes, converts and checks one image and starts it both ways.
func (b *bench) image(ctx context.Context, s source, all *results) (imageResult, error) {
	one := imageResult{Name: s.name}
	var err error
	if one.SizeBytes, err = images.Size(s.img); err != nil {
		return one, err
	}
	plain := b.registry.Addr + "/" + s.spec.Repository + ":" + plainTag
	ref, err := name.NewTag(plain)
	if err != nil {
		return one, err
	}
	tools.Say(b.progress, "%s: pushing %.1f MB to the registry", s.name, mb(one.SizeBytes))
	if err := remote.Write(ref, s.img, remote.WithContext(ctx)); err != nil {
		return one, err
	}
	start := time.Now()
	if err := b.run(ctx, "convert", plain); err != nil {
		return one, err
	}
	all.Convert.add(one.SizeBytes, time.Since(start))
	if err := b.run(ctx, "check", b.registry.Addr+"/"+s.spec.Repository+":"+lazyTag); err != nil {
		return one, err
	}
	if one.Eager, err = b.start(ctx, s, plainTag, node.Overlayfs); err != nil {
		return one, fmt.Errorf("eager start: %w", err)
	}
	lazy, err := b.start(ctx, s, lazyTag, node.Apparate)
	if err != nil {
		return one, fmt.Errorf("lazy start: %w", err)
	}
	one.Lazy = lazyResult{startResult: lazy, Fraction: float64(lazy.Bytes) / float64(one.SizeBytes)}
	one.Ratio = one.Eager.Seconds / one.Lazy.Seconds
	all.Snapshotter.RSSBytes = max(all.Snapshotter.RSSBytes, lazy.rss)
	return one, nil
}

// run runs our own program and shows its output as progress.
func (b *bench) run(ctx context.Context, args ...string) error {
	return tools.Show(ctx, b.progress, b.apparate, args...)
}

// start measures one start of an image on a node of its own.
func (b *bench) start(ctx context.Context, s source, tag, snapshotter string) (_ startResult, err error) {
	l, err := link.New(b.registry.Addr, b.mbits*1e6, b.rtt)
	if err != nil {
		return startResult{}, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	o := node.Options{Dir: filepath.Join(b.dir, s.name+"-"+snapshotter), Tools: b.tools, Registries: []string{l.Addr()}}
	if snapshotter == node.Apparate {
		o.Snapshotter = b.apparate
	}
	n, err := node.Start(ctx, o)
	if err != nil {
		return startResult{}, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			n.WriteLogs(os.Stderr)
		}
		err = errors.Join(err, n.Close())
	}()
	if err := node.DropCaches(ctx, b.dir, append(toolFiles(b.tools), b.apparate)...); err != nil {
		return startResult{}, err
	}
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	began := time.Now()
	c, err := startContainer(limited, n, l.Addr()+"/"+s.spec.Repository+":"+tag, snapshotter, s)
	if err != nil {
		return startResult{}, err
	}
	took := time.Since(began)
	down, _ := l.Bytes()
	m, err := c.RootMount(ctx)
	if err != nil {
		return startResult{}, err
	}
	r := startResult{Seconds: took.Seconds(), Bytes: down, RootMount: m.String()}
	if snapshotter == node.Apparate {
		if r.rss, err = n.SnapshotterMemory(); err != nil {
			return startResult{}, err
		}
	}
	tools.Say(b.progress, "%s on %s: ready after %.2f s, %.1f MB fetched, root is %s", s.name, snapshotter, r.Seconds, mb(r.Bytes), r.RootMount)
	return r, c.Stop(ctx)
}

// startContainer pulls and runs an image and returns once it has answered.
func startContainer(ctx context.Context, n *node.Node, ref, snapshotter string, s source) (*node.Container, error) {
	if err := n.Pull(ctx, ref, snapshotter); err != nil {
		return nil, err
	}
	return n.RunReady(ctx, ref, snapshotter, s.name, s.spec)
}

func toolFiles(paths map[string]string) []string {
	var files []string
	for _, name := range tools.All() {
		files = append(files, paths[name])
	}
	return files
}
