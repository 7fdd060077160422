// Command stargz is stargz-snapshotter as the benchmark runs it, made of its library
// modules, whose own commands are in no module of a version. It is a module of its
// own, so that the peer is never a dependency of ours.
//
//	stargz serve   --root DIR --address SOCKET --config FILE
//	stargz record  --containerd SOCKET --image REF --out FILE [--env NAME=VALUE]... [-- ARGUMENT...]
//	stargz convert --containerd SOCKET --image REF --to REF [--files FILE]
//
// serve is the daemon containerd-stargz-grpc. record and convert are the two halves
// of ctr-remote image optimize: which files a start opens, and an image that has
// them in front. convert without a list is optimize --no-optimize. Registries are
// reached over plain HTTP.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say serve, record or convert")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	switch args[0] {
	case "serve":
		root := flags.String("root", "", "directory of the snapshotter")
		address := flags.String("address", "", "socket to serve the snapshots API on")
		config := flags.String("config", "", "configuration in the peer's own format")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return serve(ctx, *root, *address, *config)
	case "record":
		var r recording
		socket := flags.String("containerd", "", "socket of containerd")
		flags.StringVar(&r.image, "image", "", "image to start")
		flags.StringVar(&r.runc, "runc-binary", "runc", "runc's path")
		flags.StringVar(&r.runcRoot, "runc-root", "", "runc's state directory")
		out := flags.String("out", "", "file for the list of opened files")
		flags.Func("env", "NAME=VALUE for the container, repeatable", func(v string) error {
			r.env = append(r.env, v)
			return nil
		})
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		r.args = flags.Args()
		return withClient(ctx, *socket, func(ctx context.Context, c *containerd.Client) error {
			paths, err := r.record(ctx, c, os.Stdin)
			if err != nil {
				return err
			}
			return os.WriteFile(*out, []byte(strings.Join(paths, "\n")+"\n"), 0o644)
		})
	case "convert":
		socket := flags.String("containerd", "", "socket of containerd")
		image := flags.String("image", "", "image to convert")
		to := flags.String("to", "", "reference of the result")
		files := flags.String("files", "", "list of files to put in front, one a line")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return withClient(ctx, *socket, func(ctx context.Context, c *containerd.Client) error {
			return convert(ctx, c, *image, *to, *files)
		})
	}
	return fmt.Errorf("no command is called %q", args[0])
}

// withClient runs do with a connection to containerd, in the namespace of ctr and
// under a lease that keeps what is fetched.
func withClient(ctx context.Context, socket string, do func(context.Context, *containerd.Client) error) (err error) {
	c, err := containerd.New(socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx = namespaces.WithNamespace(ctx, "default")
	leased, release, err := c.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release(context.WithoutCancel(ctx))) }()
	return do(leased, c)
}

// plain resolves references over plain HTTP.
func plain() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))})
}
