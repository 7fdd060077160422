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
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/token" // for --token
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
	notify := flag.String("notify", "", "URL to which notifications of pushes are sent")
	direct := flag.Bool("direct", false, "send blobs straight from their files, as a storage service beside a registry does; not with --token")
	user := flag.String("user", "", "user name:password that every request must have (Basic)")
	token := configuration.Parameters{}
	flag.Func("token", "name=value of the settings of token authentication: realm, service, issuer, jwks; may be repeated", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("write it as name=value")
		}
		token[name] = value
		return nil
	})
	headers := http.Header{}
	flag.Func("notify-header", "\"Name: value\" to send along with notifications; may be repeated", func(s string) error {
		name, value, ok := strings.Cut(s, ":")
		if !ok {
			return errors.New("write it as Name: value")
		}
		headers.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		return nil
	})
	flag.Parse()
	if *root == "" {
		return errors.New("--root is missing: name the directory of the content")
	}
	if *direct && len(token) > 0 {
		return errors.New("--direct does not look at tokens: leave out one of --direct and --token")
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
	if len(token) > 0 {
		config.Auth = configuration.Auth{"token": token}
	}
	if *notify != "" {
		config.Notifications.Endpoints = []configuration.Endpoint{{
			Name: "notify", URL: *notify, Headers: headers, Timeout: 10 * time.Second, Threshold: 3, Backoff: time.Second,
		}}
	}
	l, err := net.Listen("tcp", *address)
	if err != nil {
		return err
	}
	var app http.Handler = handlers.NewApp(ctx, config)
	if *direct {
		app = &files{filepath.Join(*root, "docker", "registry", "v2"), app}
	}
	server := &http.Server{Handler: demand(*user, app), ReadHeaderTimeout: 10 * time.Second}
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

// files sends the blobs that a repository has from the files of upstream's driver, and
// leaves everything else to upstream. That reads at least 4 MiB for each range that it is asked
// for: 4 ms of a processor, which nobody pays where a registry redirects to its storage.
type files struct {
	dir  string
	next http.Handler
}

// blobPath is a GET or HEAD of a blob by the distribution specification.
var blobPath = regexp.MustCompile(`^/v2/([a-z0-9._/-]+)/blobs/sha256:([0-9a-f]{64})$`)

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m := blobPath.FindStringSubmatch(r.URL.Path)
	if m == nil || r.Method != http.MethodGet && r.Method != http.MethodHead || strings.Contains(m[1], "..") {
		f.next.ServeHTTP(w, r)
		return
	}
	_, err := os.Stat(filepath.Join(f.dir, "repositories", m[1], "_layers", "sha256", m[2], "link"))
	if err != nil {
		f.next.ServeHTTP(w, r) // it knows how to say so
		return
	}
	b, err := os.Open(filepath.Join(f.dir, "blobs", "sha256", m[2][:2], m[2], "data"))
	if err != nil {
		f.next.ServeHTTP(w, r)
		return
	}
	defer func() { _ = b.Close() }() // only read
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", "sha256:"+m[2])
	h.Set("Etag", `"sha256:`+m[2]+`"`)
	http.ServeContent(w, r, "", time.Time{}, b)
}

// demand lets only requests with the credentials "name:password" through, if there
// are any. Upstream's way is a file of bcrypt hashes, which takes longer to check
// than a test's request to answer.
func demand(user string, next http.Handler) http.Handler {
	if user == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		if name+":"+password == user {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintln(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	})
}
