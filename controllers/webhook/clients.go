package webhook

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"
)

// Clients are those whose reviews are answered: the API server, where an administrator has
// given it a client certificate for webhooks. Without one nothing in a review tells the API
// server's from another's.
type Clients struct {
	file, name string
}

// NewClients returns the clients whose certificate a CA of the file has signed, for the
// common name if one is given. Without a file it returns nil, which is everybody.
func NewClients(file, name string) (*Clients, error) {
	if file == "" {
		if name != "" {
			return nil, errors.New("must be set where a name is")
		}
		return nil, nil
	}
	c := &Clients{file: file, name: name}
	_, err := c.roots()
	return c, err
}

// roots reads the file each time: it is small, and a CA may be replaced.
func (c *Clients) roots() (*x509.CertPool, error) {
	pem, err := os.ReadFile(c.file)
	if err != nil {
		return nil, fmt.Errorf("reading the clients' CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("file %s holds no certificate", c.file)
	}
	return roots, nil
}

// only returns a handler that hands on to next what comes from a client. It reads nothing
// of a review that does not.
func (c *Clients) only(next http.Handler) http.Handler {
	if c == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.check(r); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c *Clients) check(r *http.Request) error {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return errors.New("the client shows no certificate")
	}
	roots, err := c.roots()
	if err != nil {
		return err
	}
	shown, between := r.TLS.PeerCertificates[0], x509.NewCertPool()
	for _, certificate := range r.TLS.PeerCertificates[1:] {
		between.AddCert(certificate)
	}
	_, err = shown.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return errors.New("the client's certificate is not of the CA that was named")
	}
	if c.name != "" && shown.Subject.CommonName != c.name {
		return errors.New("the client's certificate has another name than was named")
	}
	return nil
}
