package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/pem"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// file is one of the image. A name that ends in a slash is a directory's.
type file struct {
	name string
	mode int64
	text []byte
}

// The files that programs look for; see passwd(5), group(5), nsswitch.conf(5).
const (
	passwd = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"
	group  = "root:x:0:\nnonroot:x:65532:\n"
	// Without it, names of /etc/hosts count less than those of DNS.
	nsswitch = "hosts: files dns\n"
)

// Certificates is where Go, as others, looks for certificate authorities.
const Certificates = "etc/ssl/certs/ca-certificates.crt"

// baseFiles are those beside the programs.
func baseFiles() ([]file, error) {
	roots, err := certificates()
	if err != nil {
		return nil, err
	}
	return []file{
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644, text: []byte(group)},
		{name: "etc/nsswitch.conf", mode: 0o644, text: []byte(nsswitch)},
		{name: "etc/passwd", mode: 0o644, text: []byte(passwd)},
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: Certificates, mode: 0o644, text: roots},
		{name: "tmp/", mode: 0o1777},
	}, nil
}

// certificates are Mozilla's certificate authorities, as go.sum pins them: those of a
// distribution's package change from day to day. Those that Mozilla trusts with
// conditions alone are left out, as a file cannot say so.
func certificates() ([]byte, error) {
	var b bytes.Buffer
	for r := range bundle.Roots() {
		if r.Constraint != nil {
			continue
		}
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate}); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// layer makes a layer that depends on nothing but the files.
func layer(files []file) (v1.Layer, error) {
	var b bytes.Buffer
	zip := gzip.NewWriter(&b) // the best level takes three times as long, for 0.4 %
	out := tar.NewWriter(zip)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: f.mode, Size: int64(len(f.text)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := out.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := out.Write(f.text); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
}
