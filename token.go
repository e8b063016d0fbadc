package gormsessions

import (
	"crypto/rand"
	"hash/crc32"
	"math"
	"strings"
)

// A token reads prefix_body+checksum, or body+checksum without a prefix. The
// body is random Base62 of at least TokenBytes × 8 bits; the checksum is the
// CRC-32 of all before it as 6 Base62 digits, as in the tokens of GitHub: a
// mistyped or made-up token costs no query, and a secret scanner can tell a
// real one. It guards against accidents, not attackers: they know the CRC too.
const (
	base62         = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	checksumDigits = 6   // 62⁶ > 2³²
	maxToken       = 256 // bytes: longer ones are refused before they are hashed
)

// tokenFormat is the shape of one plugin's tokens.
type tokenFormat struct {
	head string // the prefix with its underscore, or ""
	body int    // digits
}

func newTokenFormat(prefix string, randomBytes int) tokenFormat {
	f := tokenFormat{body: int(math.Ceil(float64(randomBytes) * 8 / math.Log2(62)))}
	if prefix != "" {
		f.head = prefix + "_"
	}
	return f
}

func (f tokenFormat) length() int { return len(f.head) + f.body + checksumDigits }

// newToken makes a token from crypto/rand, which cannot fail (it ends the
// program rather than give a weak one).
func (f tokenFormat) newToken() Token {
	token := make([]byte, 0, f.length())
	token = append(token, f.head...)
	var random [64]byte
	for missing := f.body; missing > 0; {
		_, _ = rand.Read(random[:])
		for _, b := range random {
			// 248 is the largest multiple of 62 in a byte: taking the
			// remainder of more would favour the first digits.
			if b < 248 && missing > 0 {
				token = append(token, base62[b%62])
				missing--
			}
		}
	}
	digits := checksum(token)
	return Token(append(token, digits[:]...))
}

// matches reports whether token has this format, to the checksum.
func (f tokenFormat) matches(token string) bool {
	if len(token) != f.length() || !strings.HasPrefix(token, f.head) {
		return false
	}
	signed := token[:len(token)-checksumDigits]
	for i := len(f.head); i < len(signed); i++ {
		if !isDigit[signed[i]] {
			return false
		}
	}
	digits := checksum([]byte(signed))
	return string(digits[:]) == token[len(signed):]
}

var isDigit = func() (list [256]bool) {
	for i := range len(base62) {
		list[base62[i]] = true
	}
	return list
}()

func checksum(signed []byte) (digits [checksumDigits]byte) {
	sum := crc32.ChecksumIEEE(signed)
	for i := checksumDigits - 1; i >= 0; i-- {
		digits[i] = base62[sum%62]
		sum /= 62
	}
	return digits
}

// visible reports whether token is of visible ASCII characters, as all are that a
// header or a cookie can carry. A digest, stolen from a table, is not: where one
// of the hashers is Plaintext it would else be found as a token.
func visible(token string) bool {
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return false
		}
	}
	return true
}
