// Command prove assembles images, starts each once for every operation that it
// has, on a real containerd with overlayfs, and prints what they are made of and
// whether they answered. With names of images it does those, otherwise all.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	names := os.Args[1:]
	if len(names) == 0 {
		names = images.All()
	}
	err := run(ctx, os.Stderr, os.Stdout, names)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "prove:", err)
		os.Exit(1)
	}
}

// startLimit is when a start is given up. It is much more than one takes.
const startLimit = 2 * time.Minute

// host is a registry and a containerd to start images on.
type host struct {
	registry *node.Registry
	node     *node.Node
	cache    string
	progress io.Writer
}

// run proves the named images and writes a table to out. Whatever it starts it has
// stopped when it returns.
func run(ctx context.Context, progress, out io.Writer, names []string) (err error) {
	paths, err := tools.Ensure(ctx, progress, tools.All()...)
	if err != nil {
		return err
	}
	cache, err := tools.CacheDir()
	if err != nil {
		return err
	}
	// Not in /tmp, which may be memory: images are unpacked here.
	dir, err := os.MkdirTemp(cache, "prove-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	h := host{cache: cache, progress: progress}
	if h.registry, err = node.StartRegistry(ctx, paths[tools.Registry], filepath.Join(dir, "registry")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.registry.Close()) }()
	if h.node, err = node.Start(ctx, node.Options{Dir: filepath.Join(dir, "node"), Tools: paths, Registries: []string{h.registry.Addr}}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.node.Close()) }()

	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	lines := "image\tMB\tlayers\tfiles\toperation\tready s\t\n"
	for _, n := range names {
		more, err := h.prove(ctx, n)
		if err != nil {
			return fmt.Errorf("image %s: %w", n, err)
		}
		lines += more
	}
	if _, err := io.WriteString(w, lines); err != nil {
		return err
	}
	return w.Flush()
}

// prove starts one image for each of its operations and returns the table's lines.
func (h host) prove(ctx context.Context, image string) (string, error) {
	img, _, err := images.Build(ctx, image, h.cache, h.progress)
	if err != nil {
		return "", err
	}
	about, err := describe(img)
	if err != nil {
		return "", err
	}
	operations, err := images.Operations(image)
	if err != nil {
		return "", err
	}
	ref, err := name.NewTag(h.registry.Addr + "/" + operations[0].Spec.Repository + ":1")
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return "", err
	}
	if err := h.node.Pull(ctx, ref.String(), node.Overlayfs); err != nil {
		return "", err
	}
	var lines strings.Builder
	for _, o := range operations {
		took, err := h.start(ctx, ref.String(), image+"-"+o.Name, o)
		if err != nil {
			return "", fmt.Errorf("operation %s: %w", o.Name, err)
		}
		fmt.Fprintf(&lines, "%s\t%s\t%s\t%.2f\t\n", image, about, o.Name, took.Seconds())
	}
	tools.Say(h.progress, "prove: %s is as it should be", image)
	return lines.String(), h.node.RemoveImage(ctx, ref.String())
}

// start runs the image until it answers, and proves that it then goes on running.
func (h host) start(parent context.Context, ref, id string, o images.Operation) (_ time.Duration, err error) {
	ctx, cancel := context.WithTimeout(parent, startLimit)
	defer cancel()
	port, err := node.FreePort()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	c, err := h.node.Run(ctx, ref, node.Overlayfs, id, append([]string{fmt.Sprintf("%s=%d", images.PortVariable, port)}, o.Env...))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Stop(parent)) }()
	if o.Spec.Line != "" {
		err = c.WaitLine(ctx, o.Spec.Line)
	} else {
		err = c.WaitPage(ctx, fmt.Sprintf("http://127.0.0.1:%d%s", port, o.Spec.Path), o.Spec.Body)
	}
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("%w; the output: %s", err, c.Output())
	}
	select {
	case <-c.Done():
		return 0, fmt.Errorf("the program has ended: %w", errors.Join(c.Err(), errors.New(c.Output())))
	case <-time.After(300 * time.Millisecond): // what ends at once has ended by then
	}
	if got := strings.TrimSpace(c.Output()); o.Spec.Line != "" && got != o.Spec.Line {
		return 0, fmt.Errorf("the output is more than the line: %q", got)
	}
	return took, nil
}

// describe returns the compressed size, and the numbers of layers and of entries
// that are no directories, as columns of the table.
func describe(img v1.Image) (string, error) {
	layers, err := img.Layers()
	if err != nil {
		return "", err
	}
	var size int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return "", err
		}
		size += n
	}
	files, err := images.Files(img)
	return fmt.Sprintf("%.1f\t%d\t%d", float64(size)/1e6, len(layers), files), err
}
