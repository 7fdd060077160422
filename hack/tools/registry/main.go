// Command registry serves CNCF Distribution from a directory, on plain HTTP.
//
// It is the project's registry without the cloud storage drivers, of which the
// upstream command links every one: they take longer to compile than everything
// else that the demo needs. Its first line of output is the address it serves.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the one driver
	"github.com/sirupsen/logrus"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run() error {
	root := flag.String("root", "", "directory of the content")
	address := flag.String("address", "127.0.0.1:0", "host:port to serve; port 0 takes a free one")
	flag.Parse()
	if *root == "" {
		return errors.New("--root is missing: name the directory of the content")
	}
	logrus.SetLevel(logrus.WarnLevel)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	config := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem": configuration.Parameters{"rootdirectory": *root},
		"delete":     configuration.Parameters{"enabled": true},
	}}
	config.HTTP.Secret = "one process, nothing to share" // else every start warns
	config.Catalog.MaxEntries = 1000
	l, err := net.Listen("tcp", *address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handlers.NewApp(ctx, config), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		_ = server.Close() // Serve returns with ErrServerClosed
	}()
	fmt.Println(l.Addr())
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
