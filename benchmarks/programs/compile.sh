# Compile one large file, or small ones again and again. Usage: compile.sh large|small SECONDS
small() {
    echo 'int main(void) { return 0; }' | gcc -O1 -x c -o /dev/null -
}

large() {
    echo 'extern double g(double);'
    for i in $(seq 650); do
        echo "double f$i(double *a, int n)"
        echo "{ double s = 0; for (int k = 0; k < n; k++) s += a[k] * g(a[k * $i % n]); return s; }"
    done
}

if [ "$1" = large ]; then
    large | gcc -O2 -c -x c -o /dev/null -
else
    end=$(($(date +%s) + $2))
    while [ "$(date +%s)" -lt "$end" ]; do
        small
    done
fi
