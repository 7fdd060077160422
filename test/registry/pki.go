package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pki is a CA with a certificate for 127.0.0.1 and one for a client.
type pki struct {
	pool                        *x509.CertPool
	server                      tls.Certificate
	caPEM, clientPEM, clientKey []byte
}

func newPKI() (*pki, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := certificate(1, "test CA")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	p := &pki{pool: x509.NewCertPool(), caPEM: block("CERTIFICATE", der)}
	p.pool.AppendCertsFromPEM(p.caPEM)

	server := certificate(2, "registry")
	server.IPAddresses, server.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	cert, key, err := issue(server, ca, caKey)
	if err != nil {
		return nil, err
	}
	if p.server, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, err
	}
	client := certificate(3, "node")
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	p.clientPEM, p.clientKey, err = issue(client, ca, caKey)
	return p, err
}

func certificate(serial int64, name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func issue(c, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, &k.PublicKey, caKey)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return block("CERTIFICATE", der), block("EC PRIVATE KEY", keyDER), nil
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// client is the TLS configuration of a client that the registry accepts.
func (p *pki) client() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: p.pool}
	if cert, err := tls.X509KeyPair(p.clientPEM, p.clientKey); err == nil {
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

// WriteCerts writes ca.crt, client.cert and client.key of a registry with TLS to
// root/<host>, the layout of docker's and containerd's certs.d, and returns that
// directory. The client's pair is left out unless the registry demands it.
func (r *Registry) WriteCerts(t testing.TB, root string) string {
	t.Helper()
	if r.pki == nil {
		t.Fatal("test/registry: WriteCerts needs WithTLS or WithClientCert")
	}
	dir := filepath.Join(root, r.Host())
	files := map[string][]byte{"ca.crt": r.pki.caPEM}
	if r.opts.clientCert {
		files["client.cert"], files["client.key"] = r.pki.clientPEM, r.pki.clientKey
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(fmt.Errorf("write certificates: %w", err))
		}
	}
	return dir
}
