package webhook

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	// validity of a certificate, and how long before its end the next one is made.
	validity = 365 * 24 * time.Hour
	renewal  = validity / 3
	// backdate allows for clocks that differ.
	backdate = time.Hour
)

// Entries of the Secret. caEntry holds what clients are to trust: the certificate and
// those before it that have not ended, because another replica may still serve one.
const (
	certificateEntry = "tls.crt"
	keyEntry         = "tls.key"
	caEntry          = "ca.crt"
)

// pair is a certificate that signs itself. There is no key of an authority that could
// sign others.
type pair struct {
	certificate, key, bundle []byte
}

// nextPair returns the pair to serve at this time: the given one, or, where it cannot
// be used or ends soon, a new one. The bundle of a new one holds what is served until
// then too: the Secret may have been deleted or emptied.
func nextPair(old pair, served *tls.Certificate, names []string, now time.Time) (next pair, renewed bool, err error) {
	if usable(old, names, now) {
		return old, false, nil
	}
	next, err = newPair(names, now)
	if err != nil {
		return pair{}, false, err
	}
	next.bundle = joined(now, next.certificate, old.bundle, bundleOf(served))
	return next, true, nil
}

func usable(p pair, names []string, now time.Time) bool {
	loaded, err := tls.X509KeyPair(p.certificate, p.key)
	if err != nil || now.Before(loaded.Leaf.NotBefore) || now.After(loaded.Leaf.NotAfter.Add(-renewal)) {
		return false
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(p.bundle) {
		return false
	}
	for _, name := range names {
		if _, err := loaded.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now}); err != nil {
			return false
		}
	}
	return true
}

func newPair(names []string, now time.Time) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, fmt.Errorf("making a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return pair{}, fmt.Errorf("drawing a serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// Told apart from the one before, which clients trust beside it.
		Subject:               pkix.Name{CommonName: names[0], SerialNumber: serial.Text(16)},
		DNSNames:              names,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return pair{}, fmt.Errorf("making a certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return pair{}, fmt.Errorf("marshalling a key: %w", err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return pair{
		certificate: certificate,
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		bundle:      append([]byte(nil), certificate...),
	}, nil
}

// mostTrusted bounds a bundle; without it, a Secret that is deleted again and again
// would let it grow for a year.
const mostTrusted = 10

// joined returns the certificates of the bundles that have not ended, each once, and of
// too many the first.
func joined(now time.Time, bundles ...[]byte) []byte {
	var all []byte
	seen := map[string]bool{}
	for _, bundle := range bundles {
		for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil || !now.Before(certificate.NotAfter) || seen[string(certificate.Raw)] || len(seen) == mostTrusted {
				continue
			}
			seen[string(certificate.Raw)] = true
			all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})...)
		}
	}
	return all
}

// bundleOf returns the certificate itself, without those that lead to its root.
func bundleOf(served *tls.Certificate) []byte {
	if served == nil {
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: served.Certificate[0]})
}

var errNoCertificate = errors.New("the webhook has no certificate yet")

// GetCertificate serves the newest certificate that clients are known to trust.
func (c *Certificates) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if served := c.served.Load(); served != nil {
		return served, nil
	}
	return nil, errNoCertificate
}
