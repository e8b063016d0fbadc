package gormsessions_test

import (
	"crypto"
	"encoding/hex"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func TestR01TokenEntropy(t *testing.T) {
	for _, randomBytes := range []int{16, 17, 24, 32, 33, 64, 100} {
		token := string(gormsessions.NewToken("", randomBytes))
		if bits := float64(len(token)-6) * math.Log2(62); bits < float64(8*randomBytes) || bits > float64(8*randomBytes)+6 {
			t.Errorf("%d bytes: a body of %.1f bits", randomBytes, bits)
		}
	}
	// Every digit is as likely as every other: χ² over 61 degrees of freedom is
	// over 130 once in 10⁶ runs. (A remainder of 256 by 62 gives some 1,800.)
	counts, n := map[rune]int{}, 0
	for range 2_000 {
		body := string(gormsessions.NewToken("", 32))[:43]
		for _, digit := range body {
			counts[digit]++
			n++
		}
	}
	if len(counts) != 62 {
		t.Fatalf("%d different digits", len(counts))
	}
	chi := 0.0
	for _, c := range counts {
		d := float64(c) - float64(n)/62
		chi += d * d / (float64(n) / 62)
	}
	if chi > 130 {
		t.Errorf("the digits are not uniform: χ² = %.0f", chi)
	}
}

func TestR02NoDuplicateTokens(t *testing.T) {
	each := 20_000
	if conformance.Long() {
		each = 1_000_000
	}
	const goroutines = 64
	// The first 20 digits, as two numbers of ten: 119 bits tell tokens apart.
	seen := make([][2]uint64, goroutines*each)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				token := gormsessions.NewToken("", 32)
				seen[g*each+i] = [2]uint64{number(token[:10]), number(token[10:20])}
			}
		})
	}
	wg.Wait()
	slices.SortFunc(seen, func(a, b [2]uint64) int {
		if c := compare(a[0], b[0]); c != 0 {
			return c
		}
		return compare(a[1], b[1])
	})
	for i := 1; i < len(seen); i++ {
		if seen[i] == seen[i-1] {
			t.Fatalf("a duplicate among %d tokens", len(seen))
		}
	}
}

func number(digits gormsessions.Token) (n uint64) {
	for _, d := range []byte(digits) {
		n = n*62 + uint64(strings.IndexByte(base62, d))
	}
	return n
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func TestR03TokenFormat(t *testing.T) {
	for _, prefix := range []string{"", "acme", "a_b", "x9"} {
		token := string(gormsessions.NewToken(prefix, 32))
		head := prefix + "_"
		if prefix == "" {
			head = ""
		}
		if !strings.HasPrefix(token, head) || len(token) != len(head)+43+6 || strings.Trim(token[len(head):], base62) != "" {
			t.Errorf("prefix %q: a token of another format", prefix)
		}
		if !gormsessions.ValidToken(prefix, 32, token) {
			t.Errorf("prefix %q: its own token is refused", prefix)
		}
		for i := range token {
			for _, c := range []byte{'0', 'z', '_', ' ', 0, 0xff} {
				if changed := token[:i] + string([]byte{c}) + token[i+1:]; changed != token && gormsessions.ValidToken(prefix, 32, changed) {
					t.Errorf("prefix %q: a change at %d is accepted", prefix, i)
				}
			}
		}
		for _, other := range []string{"", "acme", "a_b", "a", "x8"} {
			if other != prefix && gormsessions.ValidToken(other, 32, token) {
				t.Errorf("a token of %q is accepted for %q", prefix, other)
			}
		}
	}
}

func FuzzTokenFormat(f *testing.F) {
	f.Add("acme", string(gormsessions.NewToken("acme", 32)))
	f.Add("", strings.Repeat("A", 49))
	f.Fuzz(func(t *testing.T, prefix, token string) {
		if !gormsessions.ValidToken(prefix, 32, token) {
			return
		}
		// What is accepted is accepted in one spelling.
		for i := range token {
			flipped := token[:i] + string([]byte{token[i] ^ 0x20}) + token[i+1:]
			if flipped != token && gormsessions.ValidToken(prefix, 32, flipped) {
				t.Errorf("%q and %q are both accepted", token, flipped)
			}
		}
	})
}

func TestDigests(t *testing.T) {
	pepper := []byte(strings.Repeat("k", 32))
	for _, c := range []struct {
		name   string
		hasher gormsessions.Hasher
		want   string
	}{
		// The first two stand in the documentation of ecto_sessions.
		{"SHA-256", gormsessions.Hash(crypto.SHA256), "af2bdbe1aa9b6ec1e2ade1d694f41fc71a831d0268e9891562113d8a62add1bf"},
		{"salted", gormsessions.Salted(crypto.SHA256, []byte("your-secret-salt")), "709a5d6cba7d3162a1035b0a9cd13064ee4cbe4587cbcc4e378d831e728310c7"},
		{"SHA-1", gormsessions.Hash(crypto.SHA1), "8151325dcdbae9e0ff95f9f9658432dbedfdb209"},
		{"plaintext", gormsessions.Plaintext(), hex.EncodeToString([]byte("sample"))},
		// openssl dgst -sha256 -hmac kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
		{"HMAC", gormsessions.HMAC(crypto.SHA256, pepper), hmacOfSample},
	} {
		if got := hex.EncodeToString(c.hasher.Digest("sample")); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
	sizes := map[crypto.Hash]int{crypto.SHA224: 28, crypto.SHA384: 48, crypto.SHA512: 64, crypto.SHA3_224: 28, crypto.SHA3_256: 32, crypto.SHA3_384: 48, crypto.SHA3_512: 64}
	for h, size := range sizes {
		if got := len(gormsessions.Hash(h).Digest("sample")); got != size {
			t.Errorf("%v: %d bytes, want %d", h, got, size)
		}
	}
	// A pepper that the caller wipes afterwards is still the pepper.
	h := gormsessions.HMAC(crypto.SHA256, pepper)
	clear(pepper)
	if got := hex.EncodeToString(h.Digest("sample")); got != hmacOfSample {
		t.Error("the hasher uses the caller's memory")
	}
}

func TestR09UnlinkedHash(t *testing.T) {
	for h, says := range map[crypto.Hash]string{
		crypto.BLAKE2b_256: `import _ "golang.org/x/crypto/blake2b"`,
		crypto.BLAKE2b_512: `import _ "golang.org/x/crypto/blake2b"`,
		crypto.BLAKE2s_256: `import _ "golang.org/x/crypto/blake2s"`,
		crypto.RIPEMD160:   `import _ "golang.org/x/crypto/ripemd160"`,
		crypto.MD5:         "MD5 is broken",
	} {
		db, err := gorm.Open(sqlite.Open(t.TempDir()+"/test.db"), &gorm.Config{Logger: logger.Discard})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Use(gormsessions.New[conformance.UserSession](gormsessions.Config{Hashers: []gormsessions.Hasher{gormsessions.Hash(h)}}))
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "Config.Hashers[0]") {
			t.Errorf("%v: got %v, want it to say %q", h, err, says)
		}
		if d := gormsessions.Hash(h).Digest("sample"); d != nil {
			t.Errorf("%v made a digest", h)
		}
		if pool, err := db.DB(); err == nil {
			_ = pool.Close()
		}
	}
}

func BenchmarkNewToken(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_ = gormsessions.NewToken("acme", 32)
	}
}

func BenchmarkMalformedToken(b *testing.B) {
	b.ReportAllocs()
	token := string(gormsessions.NewToken("", 32))
	token = token[:len(token)-1] + "!"
	for b.Loop() {
		if gormsessions.ValidToken("", 32, token) {
			b.Fatal("accepted")
		}
	}
}

const hmacOfSample = "3d436fa3dc543a3841a5e06ec888e1f512b82702826aafede31f8db934d71c42"
