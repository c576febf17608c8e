package webhook

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	someNames = []string{"service.ns.svc", "service.ns.svc.cluster.local"}
	someTime  = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
)

// trusts says whether a client that has the bundle accepts the pair's certificate.
func trusts(t *testing.T, bundle []byte, p pair, name string, now time.Time) bool {
	t.Helper()
	loaded, err := tls.X509KeyPair(p.certificate, p.key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(bundle))
	_, err = loaded.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err == nil
}

func certificatesIn(bundle []byte) int {
	n := 0
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		n++
	}
	return n
}

func TestANewPairIsTrustedByItsBundle(t *testing.T) {
	p, renewed, err := nextPair(pair{}, someNames, someTime)
	require.NoError(t, err)
	assert.True(t, renewed)
	for _, name := range someNames {
		assert.True(t, trusts(t, p.bundle, p, name, someTime), name)
	}
	assert.False(t, trusts(t, p.bundle, p, "other.ns.svc", someTime))
	assert.False(t, trusts(t, p.bundle, p, someNames[0], someTime.Add(validity+time.Hour)), "it ends")

	same, renewed, err := nextPair(p, someNames, someTime.Add(validity-renewal-time.Minute))
	require.NoError(t, err)
	assert.False(t, renewed)
	assert.Equal(t, p, same)
}

func TestWhenAPairIsRenewed(t *testing.T) {
	good, _, err := nextPair(pair{}, someNames, someTime)
	require.NoError(t, err)
	other, _, err := nextPair(pair{}, someNames, someTime)
	require.NoError(t, err)
	cases := []struct {
		name  string
		old   pair
		names []string
		now   time.Time
	}{
		{"it ends soon", good, someNames, someTime.Add(validity - renewal + time.Minute)},
		{"it has ended", good, someNames, someTime.Add(2 * validity)},
		{"it is not valid yet", good, someNames, someTime.Add(-2 * time.Hour)},
		{"it is for another name", good, []string{"service.other.svc"}, someTime},
		{"the key is another one", pair{good.certificate, other.key, good.bundle}, someNames, someTime},
		{"the bundle does not hold it", pair{good.certificate, good.key, other.bundle}, someNames, someTime},
		{"the bundle is missing", pair{good.certificate, good.key, nil}, someNames, someTime},
		{"it is garbage", pair{[]byte("a"), []byte("b"), []byte("c")}, someNames, someTime},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, renewed, err := nextPair(c.old, c.names, c.now)
			require.NoError(t, err)
			assert.True(t, renewed)
			assert.True(t, trusts(t, p.bundle, p, c.names[0], c.now))
		})
	}
}

// A replica that has not seen the new certificate yet serves the one before.
func TestTheOneBeforeIsTrustedUntilItEnds(t *testing.T) {
	first, _, err := nextPair(pair{}, someNames, someTime)
	require.NoError(t, err)
	now := someTime.Add(validity - renewal + time.Hour)
	second, renewed, err := nextPair(first, someNames, now)
	require.NoError(t, err)
	require.True(t, renewed)
	assert.True(t, trusts(t, second.bundle, first, someNames[0], now))
	assert.True(t, trusts(t, second.bundle, second, someNames[0], now))
	assert.Equal(t, 2, certificatesIn(second.bundle))

	later := now.Add(validity - renewal + time.Hour)
	third, renewed, err := nextPair(second, someNames, later)
	require.NoError(t, err)
	require.True(t, renewed)
	assert.Equal(t, 2, certificatesIn(third.bundle), "the first has ended and is dropped")
}
